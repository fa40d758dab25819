"""Gaussians fitted to the training images: what any model of images must beat."""

import math

import torch
from torch import Tensor

from dualscore.gaussian import QUANTIZATION_VARIANCE


class FullGaussian:
    """A Gaussian with a mean and a covariance for all pixels, gathered over batches.

    Args:
        dimension: d; memory is d² in double precision.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._total = torch.zeros(dimension, dtype=torch.float64)
        self._products = torch.zeros(dimension, dimension, dtype=torch.float64)

    def add(self, pixels: Tensor) -> None:
        """Add images x of shape (B, …) with d pixels each, in [0, 1]."""
        flat = pixels.flatten(1).double() - 0.5  # centred roughly, so that little cancels later
        self.count += len(flat)
        self._total += flat.sum(dim=0)
        self._products.addmm_(flat.mT, flat)

    def fit(self) -> None:
        """Fix mean and covariance; the latter is that of the dequantized images, so it is positive."""
        mean = self._total / self.count
        covariance = self._products / self.count - mean[:, None] * mean
        covariance.diagonal().add_(QUANTIZATION_VARIANCE)
        self.mean = mean + 0.5
        self.factor = torch.linalg.cholesky(covariance)

    def restore(self, mean: Tensor, factor: Tensor, count: int) -> None:
        """Take the mean (d,), the covariance's lower Cholesky factor (d, d) and the count of another one."""
        self.mean, self.factor, self.count = mean, factor, count

    def energy(self, pixels: Tensor) -> Tensor:
        """−log p in nats of images of shape (B, …), shape (B,)."""
        centered = (pixels.flatten(1).double() - self.mean).mT
        white = torch.linalg.solve_triangular(self.factor, centered, upper=False)
        log_determinant = 2.0 * self.factor.diagonal().log().sum()
        constant = log_determinant + len(self.mean) * math.log(2 * math.pi)
        energy: Tensor = 0.5 * (white.square().sum(dim=0) + constant)
        return energy
