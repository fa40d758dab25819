r"""How log probabilities are distributed over images: the paper's histogram, in its units.

Images of one set differ by tens of decibels a dimension, with a long tail of simple, very probable ones,
which a Gumbel distribution describes: p(v) = exp(−s − e^(−s))/β with s = (v − location)/β.
Source: Guth et al. 2025, arXiv 2506.05310, figure 3, in its units. The fit is the one of
maximum likelihood: on the released energies it gives the published location and scale, the fit by moments
does not (its scale is 3.25 instead of 3.17).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from dualscore.likelihood import bits_per_dim, decibels_per_dim


@dataclass(frozen=True)
class Gumbel:
    """A Gumbel distribution of maxima, whose mode is its location."""

    location: float
    scale: float


@dataclass(frozen=True)
class Distribution:
    """Log probabilities of images; all figures but `bits` are of `decibels`."""

    decibels: Tensor  # log p of each image in dB/dim, float64, shape (n,)
    bits: Tensor  # the same as bits/dim on 256 levels, float64, shape (n,)
    median: float  # in dB/dim; between the middle two where n is even
    mean: float  # in dB/dim
    sd: float  # standard deviation over images, in dB/dim, unbiased
    gumbel: Gumbel  # fitted by maximum likelihood, in dB/dim


def distribution(energies: Tensor, dimension: int) -> Distribution:
    """Describe the log probabilities of a set of images, in dB/dim and bits/dim.

    Args:
        energies: normalized energies U(x, 0) = −log p(x) in nats, shape (n,), any floating type.
        dimension: d = C·H·W.

    Returns:
        −10 U/(d ln 10) dB/dim and 8 + U/(d ln 2) bits/dim, and their distribution.

    Raises:
        ValueError: if there are fewer than two energies, all are the same, or some are not finite.
    """
    energies = energies.detach().double().cpu()
    if energies.ndim != 1 or len(energies) < 2:
        raise ValueError(f"a distribution needs 2 energies or more, got shape {tuple(energies.shape)}")
    if wrong := int((~energies.isfinite()).sum()):
        raise ValueError(f"{wrong} of {len(energies)} energies are not finite")
    if not math.isfinite(float(energies.square().sum())):
        raise ValueError("energies are too large to have a variance")
    if bool((energies == energies[0]).all()):
        raise ValueError(f"all {len(energies)} energies are the same: no distribution can be fitted")
    decibels = decibels_per_dim(-energies, dimension)
    location, scale = stats.gumbel_r.fit(decibels.numpy())
    return Distribution(
        decibels,
        bits_per_dim(energies, dimension),
        median=float(np.median(decibels.numpy())),
        mean=float(decibels.mean()),
        sd=float(decibels.std()),
        gumbel=Gumbel(float(location), float(scale)),
    )
