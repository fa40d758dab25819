r"""Units of likelihoods.

An 8-bit image k/255 has the discrete probability P(x) of its cell, one step wide in every pixel; with noise
added inside the cells, images have a density p. The paper's convention for a density is bits/dim =
8 + U/(d ln 2), which turns it into one on 256 levels; a cell of width 1/255 costs log₂ 255 instead of 8, a
difference of 0.0056.
"""

import math
from typing import TypeVar

from torch import Tensor

from dualscore.likelihood.estimates import Estimate

LEVELS = 256  # grey levels of an 8-bit image, k/255
STEP = 1.0 / (LEVELS - 1)  # distance of neighbouring levels, in pixels


Nats = TypeVar("Nats", float, Tensor, Estimate)


def bits(nats: Nats, dimension: int) -> Nats:
    """Turn nats of a whole image into bits a dimension: nats / (d ln 2)."""
    return nats * (1.0 / (dimension * math.log(2.0)))


def bits_per_dim(energy: Tensor, dimension: int) -> Tensor:
    """8 + U/(d ln 2): normalized energies U in nats, any shape, as the paper's bits/dim on 256 levels."""
    return 8.0 + bits(energy, dimension)


def dequantized_bits_per_dim(energy: Tensor, dimension: int) -> Tensor:
    """Bits/dim of 8-bit images from energies U, any shape, of x + (u − ½)/255, u uniform, with x = k/255.

    Log₂ 255 + U/(d ln 2): on average over u an upper bound on −log₂ P(x)/d. (The step is 1/255; on (k +
    u)/256 the constant would be 8, with the same sum.)
    """
    return math.log2(1.0 / STEP) + bits(energy, dimension)


def decibels_per_dim(nats: Nats, dimension: int) -> Nats:
    """Nats of a whole image as the paper plots them: 10 nats / (d ln 10), without its minus sign."""
    return nats * (10.0 / (dimension * math.log(10.0)))


def noise_entropy(dimension: int, noise_variance: float) -> float:
    """Entropy of N(0, t I) in nats, (d/2) ln(2πe t)."""
    return 0.5 * dimension * math.log(2 * math.pi * math.e * noise_variance)


def check_floating(images: Tensor) -> None:
    """Refuse stored 8-bit images, with a ValueError; the shape does not matter."""
    if not images.is_floating_point():
        raise ValueError(f"images must be pixels in [0, 1] of a floating-point type, got {images.dtype}")


def numbers(*scalars: Tensor) -> list[float] | None:
    """The values of tensors of one element; None where they cannot be looked at, as in `torch.func.vmap`."""
    try:
        return [float(scalar.detach()) for scalar in scalars]
    except RuntimeError:
        return None


def check_clean(images: Tensor, levels: int | None = None) -> None:
    """Refuse images, any shape, that no likelihood of pixels in [0, 1] is defined for, if values can be seen.

    With `levels`, pixels must lie on the grey levels k/(levels−1).
    """
    if not len(images):
        raise ValueError("there must be at least one image")
    check_floating(images)
    found = numbers(images.min(), images.max())
    if found is not None and not (found[0] >= 0.0 and found[1] <= 1.0):
        raise ValueError(f"clean images must have pixels in [0, 1], got {found[0]:.4g} to {found[1]:.4g}")
    if levels is not None:
        scaled = images.double() * (levels - 1)
        if float((scaled - scaled.round()).abs().max()) > 1e-3:
            raise ValueError(
                f"images must lie on the grey levels k/{levels - 1}: others have no discrete likelihood"
            )
