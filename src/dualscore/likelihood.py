r"""From energies to likelihoods: units, the paper's normalisation, its standard error.

The paper's protocol (Guth et al. 2025, section 3): at t_max the density is almost N(0, t_max I) whatever
the data, so log Z = (d/2) ln(2πe t_max) − mean U(y, t_max), and
NLL = 8 + (mean U(x, 0) + log Z) / (d ln 2) bits/dim. It is an estimate on the pixel lattice, neither a
bound nor the likelihood of 8-bit images.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error, in the same unit."""

    value: float
    stderr: float

    def __str__(self) -> str:
        """`3.914 ± 0.015`; the value alone where a single image gives no error."""
        return f"{self.value:.3f}" + (f" ± {self.stderr:.3f}" if math.isfinite(self.stderr) else "")


Nats = TypeVar("Nats", float, Tensor)


def bits_per_dim(energy: Nats, dimension: int) -> Nats:
    """Turn −log p of a density on [0, 1]^d, in nats, into bits a dimension on 256 levels.

    Args:
        energy: normalised energies U, in nats.
        dimension: d = C·H·W.

    Returns:
        8 + U / (d ln 2), in bits.
    """
    return 8.0 + energy / (dimension * math.log(2.0))


def noise_entropy(dimension: int, noise_variance: float) -> float:
    """Entropy of N(0, t I) in nats, (d/2) ln(2πe t)."""
    return 0.5 * dimension * math.log(2 * math.pi * math.e * noise_variance)


def log_normalizer(mean_energy: float, dimension: int, t_max: float) -> float:
    """Log Z of the paper's protocol in nats: what must be added to U to normalise it.

    Args:
        mean_energy: mean of U(y, t_max) over noisy images, in nats.
        dimension: d.
        t_max: the largest noise variance, in pixel².

    Returns:
        Log Z in nats.
    """
    return noise_entropy(dimension, t_max) - mean_energy


def paper_bits_per_dim(
    mean_rise: float, variance: float, images: int, dimension: int, t_max: float
) -> Estimate:
    """The paper's bits/dim from U(x, 0) − U(y, t_max) of each image.

    Working with the difference image by image gives the standard error of the whole figure, that of
    log Z included.

    Args:
        mean_rise: mean over images of U(x, 0) − U(y, t_max), in nats.
        variance: unbiased variance of the same over images, in nats².
        images: number of images.
        dimension: d.
        t_max: the largest noise variance, in pixel².

    Returns:
        Bits/dim and its standard error over images (infinite for a single image).
    """
    value = bits_per_dim(mean_rise + noise_entropy(dimension, t_max), dimension)
    spread = math.sqrt(variance / images) if images > 1 else math.inf
    return Estimate(value, spread / (dimension * math.log(2.0)))
