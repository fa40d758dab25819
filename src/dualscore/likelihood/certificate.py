r"""A certificate for the variational bound: an upper confidence limit that assumes no normal law.

Let X_1, …, X_n ≥ 0 be independent, X_i ≤ b, and let c_i ≥ 0 depend on X_1, …, X_{i−1} alone. For 0 < λ ≤ 1/b,
E[1 + λ(c_i − X_i) | before] = 1 + λ(c_i − E X_i) ≤ exp(λ(c_i − E X_i)), and no factor is negative. Hence
∏ (1 + λ(c_i − X_i)) exp(λ(E X_i − c_i)) has a mean ≤ 1, and by Markov's inequality, with probability ≥ 1 − δ,

    Σ E X_i ≤ Σ c_i + [ln 1/δ − Σ ln(1 + λ(c_i − X_i))] / λ  ≈  Σ X_i + (ln 1/δ)/λ + (λ/2) Σ (X_i − c_i)².

The X_i need not have one law, and only the noise about the predictions c_i costs. λ must not look at the
draws: the limit is the least over λ_k = 2^−k/b, each with δ_k = 2^−(k+1) δ.
Source: the capital process of Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by
betting, arXiv 2010.09686, with one fixed bet: as 1 + u ≤ e^u adds the means up, they may differ. In Maurer &
Pontil 2009, arXiv 0907.3740, theorem 11, the range costs (7/3) b ln(2/δ), here b ln(2/δ); and images and
strata whose means differ cost there as if that were noise, here nothing where c_i foresees it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualscore.likelihood.bounded import (
    BoundedRows,
    decoder_ceiling,
    decoder_tail,
    space_ceiling,
    space_tail,
)

_BETS = 24
"""Values of λ, halved from one to the next; more are never best below 1e14 draws."""


@dataclass(frozen=True)
class Certificate:
    """With probability `confidence` over the noise drawn, the images' mean −log P(x) is at most `limit`.

    P is the law of 8-bit images that the bounded denoiser's diffusion, its decoder and its prior define, of
    which the bound is an upper bound on −log P(x). It says nothing of exp(−U). All parts are nats an image.
    """

    decoder: float
    """Mean of the draws."""
    diffusion: float
    """Mean of the draws."""
    prior: float
    """Mean over the images, exact."""
    tail: float
    """What rare noise, which is cut, adds at most."""
    margin: float
    """What is added for there being finitely many draws; infinite if one of them is not finite."""
    confidence: float

    @property
    def estimate(self) -> float:
        """The limit without its margin: an estimate of the bounded denoiser's bound, a trifle too large."""
        return self.decoder + self.diffusion + self.prior + self.tail

    @property
    def limit(self) -> float:
        """The upper confidence limit."""
        return self.estimate + self.margin if math.isfinite(self.margin) else math.inf


def sum_limit(values: Tensor, centres: Tensor, ceiling: float, confidence: float) -> float:
    """An upper confidence limit on the sum of the means of independent bounded draws.

    Args:
        values: X_i, each between 0 and the ceiling, shape (n,); independent, not necessarily of one law.
        centres: c_i, between 0 and the ceiling, shape (n,); c_i may depend on X_1, …, X_{i−1} only.
        ceiling: b, known beforehand.
        confidence: 1 − δ.

    Returns:
        The limit on Σ E X_i, in the values' unit; infinite if a value is not finite.

    Raises:
        ValueError: if a value or a centre is out of its range, or the confidence is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence must lie between 0 and 1, got {confidence}")
    values, centres = values.double(), centres.double()
    if not bool(values.isfinite().all()):
        return math.inf
    both = torch.stack([values, centres])
    if float(both.min()) < 0.0 or float(both.max()) > ceiling:
        low, high = float(both.min()), float(both.max())
        raise ValueError(f"draws must lie between 0 and {ceiling:.6g}, got {low:.6g} to {high:.6g}")
    deviations, total = (centres - values) / ceiling, float(centres.sum())
    odds = math.log(1.0 / (1.0 - confidence))
    limits = []
    for k in range(_BETS):
        capital = float(torch.log1p(deviations * 2.0**-k).sum())
        limits.append(total + ceiling * 2.0**k * (odds + (k + 1) * math.log(2.0) - capital))
    return min(limits)


def _above(values: Tensor) -> Tensor:
    """Sums over the rows above; not cumsum − values, whose rounding errors would know of the row itself."""
    return torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)[:-1]])


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
    return (
        torch.where(draws <= ceilings * (1.0 + 1e-6), torch.minimum(draws, ceilings), draws),
        ceilings,
        tail,
    )


def certify(rows: BoundedRows, confidence: float = 0.95) -> Certificate:
    """A certificate for the measured images, over the noise that was drawn for them.

    Args:
        rows: one draw of the decoder and one a stratum, shapes (n,) and (n, strata), in an order that
            does not depend on the draws.
        confidence: 1 − δ.

    Returns:
        The limit on the mean over these images and its parts, in nats an image.
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

    The same inequality over image totals, or over photographs, each with the mean of its images. The range of
    a total is wide: hundreds of independent images are needed before it says anything.

    Args:
        rows: of images, shapes (n,) and (n, strata).
        prior_ceiling: the most the prior's part can be, in nats.
        groups: which photograph each image is of, integers, shape (n,), the photographs being independent
            draws from the population; None if the images are.
        confidence: 1 − δ.

    Returns:
        Nats an image; infinite where it is no better than the uniform law's d ln(levels).
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
