r"""Gaussian energies of noisy images: the anchors, and the whitening that belongs to them.

If x ~ N(μ, Σ), then y = x + √t z ~ N(μ, Σ + t I) and, in nats,
U(y, t) = ½ (y−μ)ᵀ (Σ + t I)⁻¹ (y−μ) + ½ ln det 2π(Σ + t I).
A stationary Σ is (nearly) block-diagonal over the orthonormal 2-D DCT-II, one C×C block a frequency.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualscore.noise import normal_like

QUANTIZATION_VARIANCE = 1.0 / (12.0 * 255.0**2)
"""Variance of uniform noise over one 8-bit step of a pixel in [0, 1], in pixel²."""

LONGEST_SIDE = 8192
"""Pixels of a side of images that a Gaussian is made for."""


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II matrix, shape (size, size), float64: coefficients = matrix @ signal."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def _resampling(size: int, known: int) -> Tensor:
    """Weights (size, known) of a spectrum's values at frequencies πk/known in those at πk/size.

    A coefficient's variance is the spectrum's mean, weighted by what its cosine has of each frequency.
    """
    length = 4 * max(size, known)
    energy = torch.fft.rfft(dct_matrix(size), n=length).abs().square() / length
    energy[:, 1:-1] *= 2.0  # negative frequencies are as strong
    places = (torch.arange(energy.shape[1], dtype=torch.float64) * (2.0 * known / length)).clamp(
        max=known - 1
    )
    lower = places.floor().long()
    upper, share = (lower + 1).clamp(max=known - 1), places - lower
    weights = torch.zeros(size, known, dtype=torch.float64)
    weights.index_add_(1, lower, energy * (1.0 - share)).index_add_(1, upper, energy * share)
    return weights


class Standardized(NamedTuple):
    """A Gaussian's energies of noisy images, and the whitened images."""

    energy: Tensor  # U(y, t) in nats, shape (B,)
    whitened: Tensor  # w = (Σ + t)^(−1/2) (y − μ), dimensionless, shape (B, C, H, W)


class WhiteGaussian(nn.Module):
    """Independent pixels of one variance: Σ = σ² I.

    Args:
        mean: μ per channel, shape (C,).
        variance: σ² in pixel², a scalar.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone().to(torch.get_default_dtype()))
        self.register_buffer("variance", variance.clone().to(torch.get_default_dtype()))

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Standardized:
        """Energy and whitened image of noisy images (B, C, H, W) at variances t (B,)."""
        total = self.variance + noise_variance
        whitened = (noisy - self.mean[:, None, None]) / total.sqrt()[:, None, None, None]
        log_determinant = whitened[0].numel() * torch.log(2 * math.pi * total)
        energy = 0.5 * (whitened.square().sum(dim=(1, 2, 3)) + log_determinant)
        return Standardized(energy, whitened)


class StationaryGaussian(nn.Module):
    """A stationary Gaussian: one mean a channel, one C×C covariance a spatial frequency.

    Args:
        mean: μ per channel, shape (C,), pixels in [0, 1].
        spectrum: E[ŷ ŷᵀ] of the orthonormal DCT-II coefficients ŷ of image − μ, in pixel²,
            shape (C, C, H, W), positive definite at every frequency.

    Raises:
        ValueError: if shapes disagree or the spectrum is not positive.
    """

    mean: Tensor
    eigenvalues: Tensor
    axes: Tensor
    dct_rows: Tensor
    dct_columns: Tensor

    def __init__(self, mean: Tensor, spectrum: Tensor) -> None:
        super().__init__()
        channels, height, width = spectrum.shape[1:]
        if spectrum.shape[0] != channels or mean.shape != (channels,):
            raise ValueError(
                f"a mean of shape (C,) and a spectrum of shape (C, C, H, W) belong together, "
                f"got {tuple(mean.shape)} and {tuple(spectrum.shape)}"
            )
        values, axes = torch.linalg.eigh(spectrum.double().permute(2, 3, 0, 1))
        if not values.min() > 0:
            raise ValueError(f"the spectrum is not positive: smallest eigenvalue {values.min():.3g}")
        dtype = torch.get_default_dtype()
        self.register_buffer("mean", mean.clone().to(dtype))
        self.register_buffer("eigenvalues", values.permute(2, 0, 1).contiguous().to(dtype))  # (C, H, W)
        self.register_buffer("axes", axes.to(dtype))  # (H, W, C, C): columns are colour axes
        self.register_buffer("dct_rows", dct_matrix(height).to(dtype), persistent=False)
        self.register_buffer("dct_columns", dct_matrix(width).to(dtype), persistent=False)

    def analyze(self, image: Tensor) -> Tensor:
        """Coefficients of mean-subtracted images in the Gaussian's eigenbasis, (B, C, H, W)."""
        coefficients = self.dct_rows @ image @ self.dct_columns.mT
        if self.mean.numel() == 1:
            return coefficients
        return torch.einsum("hwck,bchw->bkhw", self.axes, coefficients)

    def synthesize(self, coefficients: Tensor) -> Tensor:
        """Images from coefficients in the eigenbasis, both (B, C, H, W); inverse of `analyze`."""
        if self.mean.numel() > 1:
            coefficients = torch.einsum("hwck,bkhw->bchw", self.axes, coefficients)
        return self.dct_rows.mT @ coefficients @ self.dct_columns

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Standardized:
        """Energy and whitened image of noisy images (B, C, H, W) at variances t (B,)."""
        coefficients = self.analyze(noisy - self.mean[:, None, None])
        total = self.eigenvalues + noise_variance[:, None, None, None]
        standardized = coefficients * total.rsqrt()
        energy = 0.5 * (standardized.square() + torch.log(2 * math.pi * total)).sum(dim=(1, 2, 3))
        return Standardized(energy, self.synthesize(standardized))

    def denoise(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """The best linear denoiser (Wiener's filter), x̂ = μ + Σ(Σ + t)⁻¹(y − μ), (B, C, H, W), at t (B,)."""
        shrinkage = self.eigenvalues / (self.eigenvalues + noise_variance[:, None, None, None])
        mean = self.mean[:, None, None]
        return self.synthesize(self.analyze(noisy - mean) * shrinkage) + mean

    def at(self, height: int, width: int) -> "StationaryGaussian":
        """The Gaussian of images of another size: its spectrum is one function of frequency, sampled anew.

        Between the known frequencies it is linear, and a coefficient has the mean over those that its cosine
        holds. Any Gaussian is normalized at any size, near or far.
        """
        known = self.eigenvalues.shape[1:]
        if known == (height, width):
            return self
        if max(height, width) > LONGEST_SIDE:
            raise ValueError(f"up to {LONGEST_SIDE:,} pixels a side: its cosines take the square of them")
        axes, values = self.axes.double(), self.eigenvalues.double()
        spectrum = torch.einsum("hwck,khw,hwdk->cdhw", axes, values, axes)
        rows, columns = (
            _resampling(new, old).to(spectrum) for new, old in zip((height, width), known, strict=True)
        )
        return StationaryGaussian(self.mean, rows @ spectrum @ columns.mT).to(self.mean)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw clean images x ~ N(μ, Σ), shape (count, C, H, W)."""
        white = normal_like(self.eigenvalues.expand(count, -1, -1, -1), generator)
        return self.synthesize(white * self.eigenvalues.sqrt()) + self.mean[:, None, None]

    def entropy(self, noise_variance: float = 0.0) -> Tensor:
        """Differential entropy of y in nats, a scalar: ½ ln det 2πe(Σ + t I)."""
        total = self.eigenvalues.double() + noise_variance
        return 0.5 * torch.log(2 * math.pi * math.e * total).sum()


Gaussian = WhiteGaussian | StationaryGaussian
