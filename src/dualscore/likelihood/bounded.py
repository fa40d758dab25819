r"""The bound's draws with known ranges: what a certificate is computed from.

Any function of y and t may serve as the bound's denoiser. Here it is the model's x̂, moved to the nearest
point of the ball ‖x̂ − y‖ ≤ √(t K) and then of the box [0, 1]^d, with K such that ‖z‖² > K next to never.
Both sets contain x whenever ‖z‖² ≤ K, so that the moves never raise ‖x − x̂‖, and

    ‖x − x̂‖²/t ≤ min(4K, d/t).

Draws with ‖z‖² > K count as 0, and a limit on what they would have added in the mean is given beside
(`space_tail`, `decoder_tail`). The decoder has a share centred at y itself, for −log P ≤ const + ‖z‖²/2.
Source of K: Laurent & Massart 2000, Annals of Statistics 28(5), lemma 1; tails from the χ² law itself.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.bound import (
    check_bound,
    decoder_energy,
    decoder_variance,
    noise_in_strata,
    normal_like,
    prior_divergence,
)
from dualscore.likelihood.units import LEVELS
from dualscore.noise import corrupt

_RARE = 10.0
"""P(‖z‖² > K) ≤ e^−10 by Laurent & Massart, and some 1e-6 really: less than 1e-4 bits/dim in all."""
_BLIND = 0.01
"""Share of the decoder that is centred at y: costs 0.01 nats an image."""


class BoundedRows(NamedTuple):
    """Draws of the bound whose ranges are known; all draws are independent of each other given the images."""

    decoder: Tensor
    """−log P(x | y_{t0}) in nats, one draw an image, or 0 where cut, shape (n,)."""
    space: Tensor
    """‖x − x̂‖²/(t d), one draw a stratum of ln t, or 0 where cut, shape (n, strata)."""
    prior: Tensor
    """KL(q(y_{t1} | x) ‖ prior) in nats, exact, shape (n,)."""
    dimension: int
    """d."""
    t0: float
    """Where the decoder takes over, in pixel²."""
    t1: float
    """Where the prior takes over, in pixel²."""
    levels: int = LEVELS
    """Number of grey levels."""


def noise_limit(dimension: int) -> float:
    """K, which ‖z‖² of d standard normal numbers exceeds with a probability of at most e^−10."""
    return dimension + 2.0 * math.sqrt(_RARE * dimension) + 2.0 * _RARE


def _beyond(degrees: int, limit: float) -> float:
    """P(χ² > limit)."""
    half = torch.tensor([0.5 * degrees, 0.5 * limit], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def space_ceiling(lowest: Tensor, dimension: int) -> Tensor:
    """The most that a draw of ‖x − x̂‖²/(t d) can be, min(4K/d, 1/t), for each stratum's lowest t (n,)."""
    return (1.0 / lowest).clamp(max=4.0 * noise_limit(dimension) / dimension)


def space_tail(dimension: int) -> float:
    """A number that E[‖x − x̂‖²/(t d); ‖z‖² > K] never exceeds, at any t: of (‖z‖ + √K)² ≤ 2‖z‖² + 2K."""
    limit = noise_limit(dimension)
    # E[‖z‖²; ‖z‖² > K] = d P(χ² with d + 2 degrees > K).
    return 2.0 * (_beyond(dimension + 2, limit) + limit / dimension * _beyond(dimension, limit))


def _blind_constant(dimension: int, t0: float, levels: int) -> float:
    """What −log P of the decoder's blind part is at most, beside ‖z‖²/2."""
    # Σ_k exp(−(y − k·step)²/2t) over all integers k is largest at a level (by Poisson summation).
    offsets = torch.arange(1, levels, dtype=torch.float64) / (levels - 1)
    weights = 1.0 + 2.0 * float(torch.exp(-offsets.square() / (2.0 * t0)).sum())
    # What lies beyond ±(levels − 1), as an integral; and no more than `levels` terms of at most 1.
    beyond = math.sqrt(math.tau * t0) * (levels - 1) * math.erfc(1.0 / math.sqrt(2.0 * t0))
    return dimension * math.log(min(weights + beyond, float(levels))) - math.log(_BLIND)


def decoder_ceiling(dimension: int, t0: float, levels: int = LEVELS) -> float:
    """The most nats that `decode_bounded` gives an image."""
    return _blind_constant(dimension, t0, levels) + 0.5 * noise_limit(dimension)


def decoder_tail(dimension: int, t0: float, levels: int = LEVELS) -> float:
    """A number of nats that E[−log P(x | y_{t0}); ‖z‖² > K] never exceeds."""
    limit = noise_limit(dimension)
    rare = _blind_constant(dimension, t0, levels) * _beyond(dimension, limit)
    return rare + 0.5 * dimension * _beyond(dimension + 2, limit)


def prior_ceiling(prior: StationaryGaussian, t1: float) -> float:
    """The most nats that `prior_divergence` gives an image in [0, 1]^d."""
    spectrum = prior.eigenvalues.double()
    pixels = spectrum.shape[-2] * spectrum.shape[-1]
    farthest = pixels * float(torch.maximum(prior.mean, 1.0 - prior.mean).double().square().sum())
    constant = float((torch.log1p(spectrum / t1) - spectrum / (spectrum + t1)).sum())
    return 0.5 * (farthest / (float(spectrum.min()) + t1) + constant)


def bounded_denoise(model: ScoreModel, noisy: Tensor, noise_variance: Tensor) -> Tensor:
    """x̂ (B, C, H, W) at y and t (B,), moved into the ball around y and then into [0, 1]^d."""
    step = -noise_variance[:, None, None, None] * model.gradients(noisy, noise_variance, time=False).image
    longest = (noise_limit(noisy[0].numel()) * noise_variance).sqrt()
    length = step.square().sum(dim=(1, 2, 3)).sqrt()
    scale = longest / torch.maximum(length, longest)
    return (noisy + scale[:, None, None, None] * step).clamp(0.0, 1.0)


def _kept(noise: Tensor, values: Tensor, ceiling: Tensor | float) -> Tensor:
    """Values with 0 where the noise is cut; what exceeds its ceiling does so by a rounding error."""
    cut = noise.double().square().sum(dim=(1, 2, 3)) > noise_limit(noise[0].numel())
    ceilings = torch.as_tensor(ceiling, dtype=torch.float64, device=noise.device)
    return torch.where(cut, 0.0, torch.minimum(values.double(), ceilings))


def bounded_space(model: ScoreModel, clean: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """‖x − x̂‖²/(t d) of the bounded denoiser, 0 where ‖z‖² > K: x, z (B, C, H, W), t (B,) → float64 (B,)."""
    denoised = bounded_denoise(model, corrupt(clean, noise, noise_variance), noise_variance)
    error = (denoised - clean).double().square().mean(dim=(1, 2, 3)) / noise_variance.double()
    return _kept(noise, error, space_ceiling(noise_variance.double(), clean[0].numel()))


def decode_bounded(
    model: ScoreModel, clean: Tensor, noise: Tensor, t0: float, levels: int = LEVELS
) -> Tensor:
    """−log P(x | y) of a decoder that cannot fail, in nats, float64, shape (B,); 0 where ‖z‖² > K.

    P = 0.99 P(· | x̂, v) + 0.01 P(· | y, t0), with x̂ of the bounded denoiser; at most `decoder_ceiling`.
    """
    t = torch.full_like(clean[:, 0, 0, 0], t0)
    noisy, dimension = corrupt(clean, noise, t), clean[0].numel()
    denoised = bounded_denoise(model, noisy, t)
    unexplained = 1.0 - (noisy - denoised).square().mean(dim=(1, 2, 3)) / t0
    variance = decoder_variance(unexplained, t0, clean)
    sharp = decoder_energy(clean, denoised, variance, levels).double()
    blind = decoder_energy(clean, noisy, t, levels).double()
    mixed = -torch.logaddexp(math.log1p(-_BLIND) - sharp, math.log(_BLIND) - blind)
    return _kept(noise, mixed, decoder_ceiling(dimension, t0, levels))


def bounded_rows(
    model: ScoreModel,
    clean: Tensor,
    prior: StationaryGaussian,
    *,
    t0: float,
    t1: float,
    strata: int,
    generator: torch.Generator,
    levels: int = LEVELS,
) -> BoundedRows:
    """Draw what `certify` needs, (n,) and (n, strata); arguments and errors as in `variational_bound`."""
    check_bound(clean, t0, t1, levels)
    with torch.no_grad():
        draws = noise_in_strata(clean, t0, t1, strata, generator)
        space = torch.stack([bounded_space(model, clean, noise, t) for noise, t in draws], dim=1)
        decoder = decode_bounded(model, clean, normal_like(clean, generator), t0, levels)
        return BoundedRows(
            decoder, space, prior_divergence(clean, prior, t1), clean[0].numel(), t0, t1, levels
        )
