r"""The mass of an energy: log ∫ exp(−U(y, t)) dy at a small noise variance, measured without images.

Chains begin as N(μ, Σ + t_max I), a normalized density, and are annealed down to t_min
(`dualscore.annealing`). Each weight w is an unbiased estimate of Z(t_min) = ∫ exp(−U(y, t_min)) dy, whatever
the levels and steps, as long as those were not chosen by these very chains; so is their mean Ẑ. By Markov's
inequality a positive unbiased estimate exceeds 20 Z with probability ≤ 1/20, so that

    log Z ≥ log Ẑ − ln 20    with 95 % confidence, from one chain or many, even or uneven weights.

Chains go where the energy puts mass, not where images are. A limit above the reported log Z is proof that the
energy is not normalized; one at or below it is no proof that it is: mass that annealing never meets, a
mode that no noise leads to, is not seen, and there is no such limit from above.
Source: Neal 2001, arXiv physics/9803008; Grosse, Ghahramani, Adams 2015, arXiv 1511.02543, for the limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.annealing import anneal, effective_samples, start_from
from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.estimates import Estimate
from dualscore.noise import MEASURING, log_uniform, seeded_generator

CONFIDENCE = 0.95
SLACK = math.log(1.0 / (1.0 - CONFIDENCE))  # ln 20: what Markov's inequality takes off, in nats
LEVELS = 100
CHAINS = 128
MASS = -5  # second number of the random keys of chains; others have runs' seeds or splits there
_CHAIN, _PILOT = 0, 1


@dataclass(frozen=True)
class LogMean:
    """The log of the mean of positive weights: an estimate of a log normalizer, in nats."""

    value: float  # log Ẑ
    stderr: float
    """Its standard error by the delta method, sd(w) / (√n mean w); unreliable where few weights count."""
    effective: float  # effective number of weights, (Σw)²/Σw²
    count: int  # number of weights, n

    @property
    def share(self) -> float:
        """The effective part of the weights, between 1/n and 1."""
        return self.effective / self.count

    @property
    def limit(self) -> float:
        """Below log Z with 95 % confidence: the Markov limit, log Ẑ − ln 20."""
        return self.value - SLACK

    @property
    def estimate(self) -> Estimate:
        """The value with its standard error."""
        return Estimate(self.value, self.stderr)

    def __str__(self) -> str:
        """`32.91 ± 0.71 nats, ≥ 29.91 (95 %), 2.1 of 128 weights effective`."""
        return (
            f"{self.value:.2f} ± {self.stderr:.2f} nats, ≥ {self.limit:.2f} (95 %), "
            f"{self.effective:.1f} of {self.count} weights effective"
        )


def log_mean(log_weight: Tensor) -> LogMean:
    """The log of the mean of independent weights given by their logs, (n,), n ≥ 2, and how sure it is.

    A ValueError refuses fewer than two, and what is not a number or infinite (−∞, no weight, may be).
    """
    log_weight = log_weight.double()
    count = log_weight.numel()
    if count < 2:
        raise ValueError(f"a standard error needs at least 2 weights, got {count}")
    if wrong := int((log_weight.isnan() | (log_weight == math.inf)).sum()):
        raise ValueError(f"{wrong} of {count} weights are not finite: the energy is wrong where chains went")
    effective = effective_samples(log_weight)
    variance = max(0.0, count / effective - 1.0) / (count - 1)  # of the mean, relative to its square
    return LogMean(float(log_weight.logsumexp(0)) - math.log(count), math.sqrt(variance), effective, count)


class Weighed(NamedTuple):
    """Chains annealed to the last level; a row a chain, the same whatever others it was computed with."""

    log_weights: Tensor
    """The logs of the weights at each level, float64, shape (n, L): the mean of exp of column l is Z(t_l)."""
    images: Tensor  # y at the last level, shape (n, C, H, W)
    acceptance: list[float]  # the mean acceptance at each level but the first; empty without Langevin steps


@dataclass(frozen=True)
class Mass:
    """The result of annealing."""

    at: LogMean  # log ∫ exp(−U(y, t_min)) dy, of U as the model gives it: log Z is still in it
    levels: list[float]  # the noise variances, falling, in pixel²; the last one is t_min
    profile: list[float]
    """Log Ẑ at each of them, in nats. It rises where mass appears, and is flat for a normalized energy."""
    acceptance: list[float]
    """Mean acceptance of Langevin steps at each level but the first; empty without them."""
    evaluations: int  # evaluations of the energy's gradients per chain, without the pilot's


def falling_levels(t_max: float, t_min: float, count: int) -> list[float]:
    """Noise variances falling from t_max to t_min > 0 by equal factors, at least two, in pixel²."""
    if count < 2 or not 0.0 < t_min < t_max:
        raise ValueError(f"{count} levels from {t_max:g} to {t_min:g} pixel²: 2 or more must fall, above 0")
    return log_uniform(torch.linspace(1.0, 0.0, count, dtype=torch.float64), t_min, t_max).tolist()


def pilot_step_sizes(
    model: EnergyModel,
    prior: StationaryGaussian,
    schedule: Sequence[float],
    *,
    steps: int = 1,
    chains: int = 16,
    seed: int = 0,
) -> list[float]:
    """Langevin step sizes, one a level but the first, relative to t, by chains that are then thrown away."""
    return _annealed(model, prior, schedule, range(chains), steps, None, seed, _PILOT)[1]


def weigh_chains(
    model: EnergyModel,
    prior: StationaryGaussian,
    schedule: Sequence[float],
    chains: Sequence[int],
    *,
    steps: int = 0,
    step_sizes: Sequence[float] | None = None,
    seed: int = 0,
) -> Weighed:
    """Anneal some chains, in one batch, with everything that could depend on them fixed before.

    A row for each of `chains`, their numbers, in this order: a chain depends on its number and the seed, not
    on what else is in the batch. Step sizes, relative to t, are from `pilot_step_sizes`: a ValueError refuses
    steps without them, as sizes that follow the chains bias what they weigh.
    """
    if steps and step_sizes is None:
        raise ValueError("Langevin steps need step sizes chosen by other chains: see pilot_step_sizes")
    return _annealed(model, prior, schedule, chains, steps, step_sizes, seed, _CHAIN)[0]


def _annealed(
    model: EnergyModel,
    prior: StationaryGaussian,
    schedule: Sequence[float],
    chains: Sequence[int],
    steps: int,
    step_sizes: Sequence[float] | None,
    seed: int,
    purpose: int,
) -> tuple[Weighed, list[float]]:
    generators = [seeded_generator(prior.mean.device, MEASURING, MASS, seed, purpose, n) for n in chains]
    starts = [start_from(prior, schedule[0], 1, one) for one in generators]
    found = anneal(
        model,
        torch.cat([images for images, _ in starts]),
        schedule,
        generator=generators,
        steps=steps,
        step_sizes=step_sizes,
        start_energy=torch.cat([energy for _, energy in starts]),
        prior=prior,
    )
    assert found.log_weights is not None
    return Weighed(found.log_weights, found.images, found.acceptance), found.step_sizes


def mass_of(log_weights: Tensor, schedule: Sequence[float], acceptance: Sequence[float], steps: int) -> Mass:
    """The mass from log weights (n, L) of `weigh_chains`, of one batch or several."""
    last = log_mean(log_weights[:, -1])
    profile = (log_weights.double().logsumexp(0) - math.log(len(log_weights))).tolist()
    return Mass(last, list(schedule), profile, list(acceptance), 1 + (1 + steps) * (len(schedule) - 1))


def annealed_mass(
    model: EnergyModel,
    prior: StationaryGaussian,
    *,
    t_max: float,
    t_min: float,
    levels: int = LEVELS,
    chains: int = CHAINS,
    pilot: int = 16,
    steps: int = 0,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[Mass, Weighed]:
    """Measure log ∫ exp(−U(y, t_min)) dy; returns the mass, and the chains.

    Args:
        model: the energy U, with or without its log Z.
        prior: the clean images' Gaussian N(μ, Σ).
        t_max: noise variance where chains begin, as N(μ, Σ + t_max I), in pixel².
        t_min: where they end; the smallest that the energy was trained at, or that of rounding to 8 bits.
        levels: noise variances, equally spaced in ln t.
        chains: how many are weighed.
        pilot: chains that choose the step sizes and are then thrown away; none run without steps.
        steps: Langevin steps at each level but the first.
        seed: of all that is random.
        batch_size: chains at once; the result does not depend on it.

    Returns:
        The mass, and the chains.
    """
    schedule = falling_levels(t_max, t_min, levels)
    sizes = pilot_step_sizes(model, prior, schedule, steps=steps, chains=pilot, seed=seed) if steps else None
    parts = [
        weigh_chains(model, prior, schedule, part, steps=steps, step_sizes=sizes, seed=seed)
        for first in range(0, chains, batch_size)
        for part in [range(first, min(first + batch_size, chains))]
    ]
    shares = torch.tensor([len(part.images) / chains for part in parts], dtype=torch.float64)
    accepted = shares @ torch.tensor([part.acceptance for part in parts], dtype=torch.float64)
    found = Weighed(
        torch.cat([part.log_weights for part in parts]),
        torch.cat([part.images for part in parts]),
        accepted.tolist(),
    )
    return mass_of(found.log_weights, schedule, found.acceptance, steps), found
