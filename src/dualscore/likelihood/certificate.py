r"""A certificate for the variational bound: an upper confidence limit that assumes no normal law.

Let X_1, …, X_n be independent, 0 ≤ X_i ≤ b, and let c_i ≥ 0 depend on X_1, …, X_{i−1} alone. For 0 < λ ≤ 1/b,
E[1 + λ(c_i − X_i) | before] = 1 + λ(c_i − E X_i) ≤ exp(λ(c_i − E X_i)), and no factor is negative. Hence
∏ (1 + λ(c_i − X_i)) exp(λ(E X_i − c_i)) has a mean ≤ 1, and by Markov's inequality, with probability ≥ 1 − δ,

    Σ E X_i ≤ Σ c_i + [ln 1/δ − Σ ln(1 + λ(c_i − X_i))] / λ  ≈  Σ X_i + (ln 1/δ)/λ + (λ/2) Σ (X_i − c_i)².

The X_i need not have one law, and only the noise about the predictions c_i costs. λ must not look at the
draws: the limit is the least over λ_k = 2^−k/b, each with δ_k = 2^−(k+1) δ.
Source: Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by betting, arXiv 2010.09686,
with one fixed bet: as 1 + u ≤ e^u adds the means up, they may differ.

The draws need known ranges. Any function of y and t may serve as the bound's denoiser: here it is x̂, moved to
the nearest point of the ball ‖x̂ − y‖ ≤ √(t K) and then of the box [0, 1]^d, with K such that ‖z‖² > K next to
never. Both hold x whenever ‖z‖² ≤ K, so that no move raises ‖x − x̂‖, and ‖x − x̂‖²/t ≤ min(4K, d/t). Draws
with ‖z‖² > K count as 0, and a limit on what they would have added in the mean is added (`space_tail`,
`decoder_tail`). The decoder has a share centred at y itself, for −log P ≤ const + ‖z‖²/2.
Source of K: Laurent & Massart 2000, Annals of Statistics 28(5), lemma 1; tails from the χ² law itself.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import bound
from dualscore.likelihood.units import LEVELS
from dualscore.noise import corrupt, normal_like

_RARE = 10.0  # P(‖z‖² > K) ≤ e^−10 by Laurent & Massart, and some 1e-6 really: less than 1e-4 bits/dim in all
_BLIND = 0.01  # share of the decoder that is centred at y: costs 0.01 nats an image
_BETS = 24  # values of λ, halved from one to the next; more are never best below 1e14 draws


class BoundedRows(NamedTuple):
    """Draws of the bound whose ranges are known; all draws are independent of each other given the images."""

    decoder: Tensor  # −log P(x | y_{t0}) in nats, one draw an image, or 0 where cut, shape (n,)
    space: Tensor  # ‖x − x̂‖²/(t d), one draw a stratum of ln t, or 0 where cut, shape (n, strata)
    prior: Tensor  # KL(q(y_{t1} | x) ‖ prior) in nats, exact, shape (n,)
    dimension: int
    t0: float
    t1: float  # where the decoder and the prior take over, in pixel²
    levels: int = LEVELS


@dataclass(frozen=True)
class Certificate:
    """With probability `confidence` over the noise drawn, the images' mean −log P(x) is at most `limit`.

    P is the law of 8-bit images that the bounded denoiser's diffusion, its decoder and its prior define, of
    which the bound is an upper bound on −log P(x). It says nothing of exp(−U). All parts are nats an image.
    """

    decoder: float  # mean of the draws
    diffusion: float  # mean of the draws
    prior: float  # mean over the images, exact
    tail: float  # what rare noise, which is cut, adds at most
    margin: float  # added for there being finitely many draws; infinite if one of them is not finite
    confidence: float  # 1 − δ

    @property
    def estimate(self) -> float:
        """The limit without its margin: an estimate of the bounded denoiser's bound, a trifle too large."""
        return self.decoder + self.diffusion + self.prior + self.tail

    @property
    def limit(self) -> float:
        """The upper confidence limit."""
        return self.estimate + self.margin if math.isfinite(self.margin) else math.inf


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
    bound.check_bound(clean, t0, t1, levels)
    with torch.no_grad():
        draws = bound.noise_in_strata(clean, t0, t1, strata, generator)
        space = torch.stack([bounded_space(model, clean, noise, t) for noise, t in draws], dim=1)
        decoder = decode_bounded(model, clean, normal_like(clean, generator), t0, levels)
        divergence = bound.prior_divergence(clean, prior, t1)
    return BoundedRows(decoder, space, divergence, clean[0].numel(), t0, t1, levels)


def certify(rows: BoundedRows, confidence: float = 0.95) -> Certificate:
    """A certificate, in nats an image, for the mean over the measured images, over their noise.

    One draw of the decoder and one a stratum, shapes (n,) and (n, strata), in an order that does not depend
    on the draws; `confidence` is 1 − δ.
    """
    draws, ceilings, tail = _in_nats(rows)
    ceiling, images = float(ceilings.max()), len(draws)
    centres = _foreseen(draws.nan_to_num(0.0, 0.0, 0.0), ceiling)
    total = sum_limit(draws.flatten(), centres.flatten(), ceiling, confidence)
    mean = draws.mean(dim=0)
    margin = total / images - float(mean.sum()) if math.isfinite(total) else math.inf
    return Certificate(
        float(mean[0]), float(mean[1:].sum()), float(rows.prior.double().mean()), tail, margin, confidence
    )


def population_limit(
    rows: BoundedRows, prior_ceiling: float, groups: Tensor | None = None, confidence: float = 0.95
) -> float:
    """An upper confidence limit on the bound's mean over the population that the images are drawn from.

    The same inequality over image totals, or over photographs, each with the mean of its images: `groups`
    says which one each image is of, shape (n,), where photographs are the independent draws. The range of a
    total is wide: hundreds of independent images are needed before it says anything. In nats an image;
    infinite where it is no better than the uniform law's d ln(levels).
    """
    draws, ceilings, tail = _in_nats(rows)
    ceiling = float(ceilings.sum()) + prior_ceiling
    totals = draws.sum(dim=1) + rows.prior.double().cpu().clamp(min=0.0)
    if groups is not None:
        _, which = torch.unique(groups.cpu(), return_inverse=True)
        count = torch.bincount(which)
        totals = torch.zeros(len(count), dtype=torch.float64).index_add(0, which, totals) / count
    centres = _foreseen(totals.nan_to_num(0.0, 0.0, 0.0)[:, None], ceiling)[:, 0]
    limit = sum_limit(totals, centres, ceiling, confidence) / len(totals) + tail
    return limit if limit < rows.dimension * math.log(rows.levels) else math.inf


def sum_limit(values: Tensor, centres: Tensor, ceiling: float, confidence: float) -> float:
    """An upper confidence limit on Σ E X_i of independent draws X_i, with centres c_i, both of shape (n,).

    X_i and c_i lie between 0 and the ceiling b, known beforehand, and c_i depends on X_1, …, X_{i−1} only;
    a ValueError refuses others. Infinite if a value is not finite.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence must lie between 0 and 1, got {confidence}")
    values, centres = values.double(), centres.double()
    if not bool(values.isfinite().all()):
        return math.inf
    low, high = map(float, torch.stack([values, centres]).aminmax())
    if low < 0.0 or high > ceiling:
        raise ValueError(f"draws must lie between 0 and {ceiling:.6g}, got {low:.6g} to {high:.6g}")
    deviations, total = (centres - values) / ceiling, float(centres.sum())
    odds = math.log(1.0 / (1.0 - confidence))
    limits = []
    for k in range(_BETS):
        capital = float(torch.log1p(deviations * 2.0**-k).sum())
        limits.append(total + ceiling * 2.0**k * (odds + (k + 1) * math.log(2.0) - capital))
    return min(limits)


def _in_nats(rows: BoundedRows) -> tuple[Tensor, Tensor, float]:
    """All draws in nats, decoder first, shape (n, 1 + strata), the most each can be, and the tail."""
    dimension, strata = rows.dimension, rows.space.shape[1]
    width = math.log(rows.t1 / rows.t0) / strata
    lowest = rows.t0 * torch.exp(width * torch.arange(strata, dtype=torch.float64))
    factor = 0.5 * dimension * width
    decoder = torch.tensor([decoder_ceiling(dimension, rows.t0, rows.levels)], dtype=torch.float64)
    ceilings = torch.cat([decoder, factor * space_ceiling(lowest, dimension)])
    draws = torch.cat([rows.decoder[:, None].double(), factor * rows.space.double()], dim=1).cpu()
    tail = strata * factor * space_tail(dimension) + decoder_tail(dimension, rows.t0, rows.levels)
    # A rounding error must not pass for a draw out of its range.
    draws = torch.where(draws <= ceilings * (1.0 + 1e-6), torch.minimum(draws, ceilings), draws)
    return draws, ceilings, tail


def _foreseen(values: Tensor, ceiling: float) -> Tensor:
    """Centres of draws (n, m), read row by row: from the rows above, and the draw before in the same row."""
    rows = torch.arange(len(values), dtype=torch.float64, device=values.device)[:, None]
    mean = _above(values) / rows.clamp(min=1.0)
    rest = torch.where(rows > 0, values - mean, 0.0)
    before = torch.cat([torch.zeros_like(rest[:, :1]), rest[:, :-1]], dim=1)
    # How much of a draw's deviation from its column's mean the next column shares, as far as is known above.
    shared, square = _above(before * rest), _above(before.square())
    slope = torch.where(square > 0, shared / square, 0.0).clamp(0.0, 1.0)
    return (mean + slope * before).clamp(0.0, ceiling)


def _above(values: Tensor) -> Tensor:
    """Sums over the rows above; not cumsum − values, whose rounding errors would know of the row itself."""
    return torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)[:-1]])


def bounded_space(model: ScoreModel, clean: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """‖x − x̂‖²/(t d) of the bounded denoiser, 0 where ‖z‖² > K: x, z (B, C, H, W), t (B,) → float64 (B,)."""
    denoised = bounded_denoise(model, corrupt(clean, noise, noise_variance), noise_variance)
    t = noise_variance.double()
    error = (denoised - clean).double().square().mean(dim=(1, 2, 3)) / t
    return _kept(noise, error, space_ceiling(t, clean[0].numel()))


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
    variance = bound.decoder_variance(unexplained, t0, clean)
    sharp = bound.decoder_energy(clean, denoised, variance, levels).double()
    blind = bound.decoder_energy(clean, noisy, t, levels).double()
    mixed = -torch.logaddexp(math.log1p(-_BLIND) - sharp, math.log(_BLIND) - blind)
    return _kept(noise, mixed, decoder_ceiling(dimension, t0, levels))


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


def noise_limit(dimension: int) -> float:
    """K, which ‖z‖² of d standard normal numbers exceeds with a probability of at most e^−10."""
    return dimension + 2.0 * math.sqrt(_RARE * dimension) + 2.0 * _RARE


def _beyond(degrees: int, limit: float) -> float:
    """P(χ² > limit)."""
    half = torch.tensor([0.5 * degrees, 0.5 * limit], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def space_ceiling(lowest: Tensor, dimension: int) -> Tensor:
    """The most that a draw of ‖x − x̂‖²/(t d) can be, min(4K/d, 1/t), for strata's lowest t, shape (S,)."""
    return (1.0 / lowest).clamp(max=4.0 * noise_limit(dimension) / dimension)


def space_tail(dimension: int) -> float:
    """A number that E[‖x − x̂‖²/(t d); ‖z‖² > K] never exceeds, at any t: of (‖z‖ + √K)² ≤ 2‖z‖² + 2K."""
    limit = noise_limit(dimension)
    # E[‖z‖²; ‖z‖² > K] = d P(χ² with d + 2 degrees > K).
    return 2.0 * (_beyond(dimension + 2, limit) + limit / dimension * _beyond(dimension, limit))


def decoder_ceiling(dimension: int, t0: float, levels: int = LEVELS) -> float:
    """The most nats that `decode_bounded` gives an image."""
    return _blind_constant(dimension, t0, levels) + 0.5 * noise_limit(dimension)


def decoder_tail(dimension: int, t0: float, levels: int = LEVELS) -> float:
    """A number of nats that E[−log P(x | y_{t0}); ‖z‖² > K] never exceeds."""
    limit = noise_limit(dimension)
    rare = _blind_constant(dimension, t0, levels) * _beyond(dimension, limit)
    return rare + 0.5 * dimension * _beyond(dimension + 2, limit)


def _blind_constant(dimension: int, t0: float, levels: int) -> float:
    """The most that −log P of the decoder's blind part can be, beside ‖z‖²/2."""
    # Σ_k exp(−(y − k·step)²/2t) over all integers k is largest at a level (by Poisson summation).
    offsets = torch.arange(1, levels, dtype=torch.float64) / (levels - 1)
    weights = 1.0 + 2.0 * float(torch.exp(-offsets.square() / (2.0 * t0)).sum())
    # What lies beyond ±(levels − 1), as an integral; and no more than `levels` terms of at most 1.
    beyond = math.sqrt(math.tau * t0) * (levels - 1) * math.erfc(1.0 / math.sqrt(2.0 * t0))
    return dimension * math.log(min(weights + beyond, float(levels))) - math.log(_BLIND)


def prior_ceiling(prior: StationaryGaussian, t1: float) -> float:
    """The most nats that `prior_divergence` gives an image in [0, 1]^d."""
    spectrum = prior.eigenvalues.double()
    pixels = spectrum.shape[-2] * spectrum.shape[-1]
    farthest = pixels * float(torch.maximum(prior.mean, 1.0 - prior.mean).double().square().sum())
    constant = float((torch.log1p(spectrum / t1) - spectrum / (spectrum + t1)).sum())
    return 0.5 * (farthest / (float(spectrum.min()) + t1) + constant)
