"""Energies of Gaussians, and what is known of measurements of them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel


class Known(EnergyModel):
    """It counts what it is asked."""

    def __init__(self, gaussian: StationaryGaussian) -> None:
        super().__init__()
        self.gaussian, self.asked = gaussian, 0

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        self.asked += 1
        return self.gaussian(noisy, noise_variance).energy


def smooth(side: int, mean: float = 0.5, variance: float = 0.05) -> StationaryGaussian:
    """A Gaussian of gray images whose variance falls with the frequency."""
    frequency = torch.arange(side)[:, None] ** 2 + torch.arange(side)[None, :] ** 2
    return StationaryGaussian(torch.tensor([mean]), (variance / (1.0 + frequency))[None, None])


def known_model(energy: EnergyModel, prior: StationaryGaussian, t_min: float = 1e-4) -> ImageModel:
    """A normalized energy as a model of images of the prior's size."""
    shape = tuple(prior.eigenvalues.shape)
    ends = {"t_min": t_min, "t_max": 10.0}
    return ImageModel(energy, image_shape=shape, prior=prior, log_normalizer=0.0, **ends)  # type: ignore[arg-type]


class Posterior:
    """p(x | y) and p(y), of y = A x + √v z and x of a Gaussian with noise of variance s; float64."""

    def __init__(
        self,
        gaussian: StationaryGaussian,
        last: float,
        forward: Callable[[Tensor], Tensor],
        y: Tensor,
        v: float,
    ) -> None:
        shape = gaussian.eigenvalues.shape
        axes = gaussian.synthesize(torch.eye(shape.numel()).view(-1, *shape)).flatten(1).double()
        covariance = axes.mT @ torch.diag(gaussian.eigenvalues.flatten().double() + last) @ axes
        matrix = forward(torch.eye(shape.numel()).view(-1, *shape)).flatten(1).mT.double()
        mean = gaussian.mean.double()[:, None, None].expand(shape).flatten()
        told = matrix @ covariance @ matrix.mT + v * torch.eye(len(matrix), dtype=torch.float64)
        off = y.flatten().double() - matrix @ mean
        gain = torch.linalg.solve(told, matrix @ covariance).mT
        self.mean, self.covariance = mean + gain @ off, covariance - gain @ matrix @ covariance
        self.log_evidence = float(
            -0.5 * (off @ torch.linalg.solve(told, off) + torch.logdet(2.0 * math.pi * told))
        )
