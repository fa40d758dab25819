"""Linear measurements y = A(x) + √v z as matrices in the coefficients of the training images' Gaussian."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.noise import normal_like

Forward = Callable[[Tensor], Tensor]
"""A(x): images (B, C, H, W) to measurements (B, …), linear, or linear and a constant."""
_TOGETHER = 256  # images that A sees at once


class Guide:
    """−ln N(y; A E[x | x_t], v I + A Cov[x | x_t] Aᵀ) at one noise variance, images being Gaussian.

    Args:
        matrix: of A in the coefficients, (m, d).
        measured: y − A(μ), (m,).
        noise_variance: v.
        variances: λ + s of the coefficients, (d,).
        added: t − s.
    """

    def __init__(
        self, matrix: Tensor, measured: Tensor, noise_variance: float, variances: Tensor, added: float
    ) -> None:
        share = variances / (variances + added)
        told = noise_variance * torch.eye(len(matrix)).to(matrix) + (matrix * (share * added)) @ matrix.mT
        factor, failed = torch.linalg.cholesky_ex(told)
        if int(failed):
            raise SamplingError(
                f"noise of variance {noise_variance:g} is too little for this A in double precision"
            )
        self.matrix = torch.linalg.solve_triangular(factor, matrix * share, upper=False)
        self.measured = torch.linalg.solve_triangular(factor, measured[:, None], upper=False)[:, 0]
        self.constant = float(factor.diagonal().log().sum()) + 0.5 * len(matrix) * math.log(2.0 * math.pi)
        self.hessian = self.matrix.mT @ self.matrix

    def __call__(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Nats, shape (B,), of coefficients (B, d), and their gradient (B, d)."""
        off = coefficients @ self.matrix.mT - self.measured
        return 0.5 * off.square().sum(dim=1) + self.constant, off @ self.matrix


def matrix_of(
    forward: Forward, measurement: Tensor, prior: StationaryGaussian, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A's matrix in the coefficients, shape (m, d), and y − A(μ), (m,), in double precision."""
    shape = prior.eigenvalues.shape

    def told(coefficients: Tensor) -> Tensor:
        images = images_of(coefficients, prior)
        found = forward(images)
        if len(found) != len(images) or found.shape[1:] != measurement.shape:
            raise SamplingError(
                f"A must give as many measurements as images, of y's shape {tuple(measurement.shape)}; to "
                f"images {tuple(images.shape)} it gave {tuple(found.shape)}"
            )
        if found.is_complex() or measurement.is_complex():
            raise SamplingError("A and y must be real: torch.view_as_real(…) has both parts as numbers")
        return found.reshape(len(found), -1).double()

    zeros = torch.zeros(1, shape.numel()).to(prior.mean)
    base = told(zeros)
    basis = torch.split(torch.eye(shape.numel()).to(prior.mean), _TOGETHER)
    matrix = torch.cat([told(some) - base for some in basis]).mT
    measured = measurement.to(base).flatten() - base[0]
    if not bool(matrix.isfinite().all()) or not bool(measured.isfinite().all()):
        raise SamplingError("A or y has numbers that are not finite")
    other = normal_like(zeros, generator)
    expected = matrix @ other[0].to(matrix)
    off = float(((told(other) - base)[0] - expected).norm())
    if not off <= 1e-3 * float(expected.norm()) + 1e-5 * float(base.norm()):
        raise SamplingError("A is not linear: A(x + z) − A(x) is not the sum of what its pixels make")
    return matrix, measured


def reduced(matrix: Tensor, measured: Tensor, noise_variance: float) -> tuple[Tensor, Tensor, float]:
    """A, shape (m, d), and y (m,) with at most d rows, as A = QR, and Qᵀy; the nats of the rest of y."""
    rows, columns = matrix.shape
    if rows <= columns:
        return matrix, measured, 0.0
    axes, triangle = torch.linalg.qr(matrix)
    inside = axes.mT @ measured
    outside = float((measured - axes @ inside).square().sum()) / noise_variance
    nats = 0.5 * (outside + (rows - columns) * math.log(2.0 * math.pi * noise_variance))
    return triangle, inside, nats


def images_of(coefficients: Tensor, prior: StationaryGaussian) -> Tensor:
    """Images, shape (B, C, H, W), of coefficients (B, d)."""
    own = coefficients.view(-1, *prior.eigenvalues.shape).to(prior.eigenvalues)
    return prior.synthesize(own) + prior.mean[:, None, None]
