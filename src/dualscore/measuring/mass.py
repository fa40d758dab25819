r"""The mass of an energy, log ∫ exp(−U(y, t)) dy, measured without images.

At a small noise variance: chains begin as N(μ, Σ + t_max I), a normalized density, and step down to t_min
(`anneal`, without Langevin steps). Each weight w is an unbiased estimate of Z(t_min) = ∫ exp(−U(y, t_min)) dy
whatever the levels, if those were not chosen by these very chains; so is their mean Ẑ. By Markov's
inequality a positive unbiased estimate exceeds 20 Z with probability ≤ 1/20, so that

    log Z ≥ log Ẑ − ln 20    with 95 % confidence, from one chain or many, even or uneven weights.

Chains go where the energy puts mass, not where images are. A limit above the reported log Z is proof that the
energy is not normalized; one at or below it is no proof that it is: mass that annealing never meets, a
mode that no noise leads to, is not seen, and there is no such limit from above.
Source: Neal 2001, arXiv physics/9803008; Grosse, Ghahramani, Adams 2015, arXiv 1511.02543, for the limit.

At large noise variances: where t is far above the images' variances, their noisy density is nearly
N(μ, Σ + t I) = exp(−U_G), so that

    Z(t) = ∫ exp(−U(y, t)) dy = E_{y ~ N(μ, Σ + t I)} exp(U_G(y, t) − U(y, t))

is a mean of nearly equal weights, and one number: at smaller t the same mean must come out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.normalizer import LogMean, MeasuredMass, log_mean
from dualscore.likelihood.units import bits
from dualscore.noise import MEASURING, seeded_generator
from dualscore.sampling.annealed import anneal, start_from

LEVELS = 100  # noise levels of a chain
MASS, NORMALIZER = -5, -6
"""Second numbers of the random keys of chains and draws; others have runs' seeds or splits there."""


@dataclass(frozen=True)
class Mass:
    """What chains found."""

    at: LogMean  # log ∫ exp(−U(y, t_min)) dy, of U as the model gives it: log Z is still in it
    levels: list[float]  # the noise variances, falling, in pixel²; the last one is t_min
    profile: list[float]
    """Log Ẑ at each of them, in nats. It rises where mass appears, and is flat for a normalized energy."""


class Weighed(NamedTuple):
    """Chains annealed to the last level; a row a chain, the same whatever others it was computed with."""

    log_weights: Tensor
    """The logs of the weights at each level, float64, shape (n, L): the mean of exp of column l is Z(t_l)."""
    images: Tensor  # y at the last level, shape (n, C, H, W)


def weigh_chains(
    model: EnergyModel,
    prior: StationaryGaussian,
    schedule: Sequence[float],
    chains: Sequence[int],
    *,
    seed: int = 0,
) -> Weighed:
    """Anneal some chains, in one batch: a row for each of `chains`, their numbers, in this order.

    A chain depends on its number and the seed, not on what else is in the batch.
    """
    keys = [(MASS, seed, 0, n) for n in chains]  # 0: once the purpose of a chain, kept for the same draws
    generators = [seeded_generator(prior.mean.device, MEASURING, *key) for key in keys]
    images, energy = _starts(prior, schedule[0], generators)
    found = anneal(model, images, schedule, generator=generators, steps=0, start_energy=energy, prior=prior)
    assert found.log_weights is not None
    return Weighed(found.log_weights, found.images)


def mass_of(log_weights: Tensor, schedule: Sequence[float]) -> Mass:
    """The mass from log weights (n, L) of `weigh_chains`, of one batch or several."""
    profile = (log_weights.double().logsumexp(0) - math.log(len(log_weights))).tolist()
    return Mass(log_mean(log_weights[:, -1]), list(schedule), profile)


def measured_mass(found: Mass, log_normalizer: float, dimension: int) -> MeasuredMass:
    """The mass in nats and bits/dim that is left when an energy is normalized by the log Z reported of it."""
    nats, limit = found.at.value - log_normalizer, found.at.limit - log_normalizer
    return MeasuredMass(
        nats=nats,
        stderr=found.at.stderr,
        limit=limit,
        bits=bits(nats, dimension),
        limit_bits=bits(limit, dimension),
        effective_share=found.at.share,
        noise_variance=found.levels[-1],
    )


def normalizer_variances(t_max: float) -> list[float]:
    """Noise variances at which log Z must come out the same: t_max, t_max/√10, t_max/10, in pixel²."""
    return [t_max, t_max / math.sqrt(10.0), t_max / 10.0]


@torch.no_grad()
def importance_weights(
    model: EnergyModel,
    prior: StationaryGaussian,
    variances: Sequence[float],
    draws: Sequence[int],
    *,
    seed: int = 0,
) -> Tensor:
    """Log weights U_G − U of draws from the Gaussian, float64, shape (n, T), whose means are Z(t).

    A draw depends on its number and the seed alone; `log_mean` makes log Z of a column.
    """
    columns = []
    for j, t in enumerate(variances):
        keys = [(NORMALIZER, seed, j, n) for n in draws]
        generators = [seeded_generator(prior.mean.device, MEASURING, *key) for key in keys]
        noisy, energy = _starts(prior, t, generators)
        columns.append(energy.double() - model(noisy, noisy.new_full((len(noisy),), t)).double())
    return torch.stack(columns, dim=1)


def _starts(
    prior: StationaryGaussian, t: float, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """One draw of N(μ, Σ + t I) by each generator, and its energy."""
    images, energies = zip(*(start_from(prior, t, 1, one) for one in generators), strict=True)
    return torch.cat(images), torch.cat(energies)
