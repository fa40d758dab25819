r"""Annealed sampling: from noise down a falling schedule of noise variances, with weights that make it exact.

Between two levels t > s a step back along the diffusion is drawn, y_s ~ q(y_s | y_t) of
`dualscore.annealing.reverse`, and Langevin steps at s follow, which the energy accepts or rejects. The way
forward is known: it adds noise. So with

    w = exp(−U(y_s, s)) N(y_t; y_s, (t−s) I) / (exp(−U(y_t, t)) q(y_s | y_t))

the pair (y_s, y_t) has the right weight; steps that leave p(y | t) as it is change no weights; and samples
weighted with the product over all levels are of p(y | t_min) exactly, as many as there are, whatever the
schedule and the steps: coarse ones only make weights uneven. What is compared are energies of different
levels, so this is where normalization counts: the mean of the weights is Z(t_min)/Z of the start, 1 for a
normalized energy. Modes that share no mass at t_min get their right shares from where they still did.
Exact is meant of steps that do not depend on the chains they move: step sizes that follow the chains' own
acceptance bias the mean weight a little. Where that mean is the result, they are frozen (`step_sizes`).
Source: Neal 2001, Annealed importance sampling, arXiv physics/9803008; Del Moral, Doucet, Jasra 2006,
Sequential Monte Carlo samplers, equation 12, with the diffusion as backward kernel.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.annealing.conditions import NOTHING, Condition
from dualscore.annealing.metropolis import Random, evaluate, mala
from dualscore.annealing.reverse import step_down
from dualscore.energy import Gradients, ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.noise import normal_like

BEST_ACCEPTANCE = 0.574
"""Acceptance of Langevin proposals at which chains move fastest. Roberts and Rosenthal 1998."""
_PATIENCE = 0.5  # how far the step size follows one level's acceptance, in nats


class Annealed(NamedTuple):
    """Samples, and how they came about."""

    images: Tensor  # y at the last level, shape (B, C, H, W)
    log_weight: Tensor | None
    """Natural log of the weights, float64, shape (B,); None for samples that were not adjusted."""
    acceptance: list[float]  # the mean acceptance at each level but the first; empty without Langevin steps
    step_sizes: list[float]  # Langevin step sizes at each level but the first, relative to its t
    log_weights: Tensor | None  # the logs of the weights as they grew, at each level, float64, shape (B, L)


def effective_samples(log_weight: Tensor) -> float:
    """Effective number of weighted samples, (Σw)²/Σw², from the logs of their weights, shape (B,)."""
    return float((2.0 * log_weight.logsumexp(0) - (2.0 * log_weight).logsumexp(0)).exp())


def resample(log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """Choose samples by their log weights (B,): places in rising order, int64, (B,).

    Systematic resampling: each is chosen ⌊Bw⌋ or ⌈Bw⌉ times.
    """
    count = len(log_weight)
    start = torch.rand(1, generator=generator, dtype=log_weight.dtype, device=log_weight.device)
    place = (torch.arange(count, device=log_weight.device) + start) / count
    return torch.searchsorted(log_weight.softmax(0).cumsum(0), place).clamp(max=count - 1)


def start_from(
    prior: StationaryGaussian, noise_variance: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise N(μ, Σ + t I) that sampling starts from, (count, C, H, W), and its energies there, (count,).

    The noise variance t should be so large that the noisy images are nearly of that density.
    """
    clean = prior.sample(count, generator)
    noisy = clean + noise_variance**0.5 * normal_like(clean, generator)
    return noisy, prior(noisy, clean.new_full((count,), noise_variance)).energy


def anneal(
    model: ScoreModel,
    start: Tensor,
    schedule: Sequence[float],
    *,
    generator: Random,
    steps: int = 1,
    step_size: float | None = None,
    step_sizes: Sequence[float] | None = None,
    adjust: bool = True,
    condition: Condition = NOTHING,
    start_energy: Tensor | None = None,
    prior: StationaryGaussian | None = None,
) -> Annealed:
    """Carry samples of p(y | t) from the first level of a schedule to the last.

    Args:
        model: an energy; without adjustment a denoiser does as well.
        start: samples at the first level, shape (B, C, H, W).
        schedule: noise variances t > 0 in pixel², falling.
        generator: on the images' device; one for all chains, or one a chain.
        steps: Langevin steps at each level but the first.
        step_size: of the first level's steps, relative to its t; by default 1.65² d^(−1/3), the best for a
            normal density. Adjusted steps follow the acceptance of the levels before, towards 0.574.
        step_sizes: of the steps at each level but the first, relative to its t, chosen by other chains; then
            nothing follows the acceptance.
        adjust: accept or reject by the energy and weigh the samples; False is annealed Langevin sampling.
        condition: what is known of the images.
        start_energy: −log of the density that `start` was drawn from, shape (B,), so that the weights
            correct that too; by default it was the model's own.
        prior: the clean images' Gaussian, which gives the steps down a variance for each frequency; None
            gives them one for all. Weights are right with either, and more even with it.

    Returns:
        The samples at the last level, their weights, and the acceptance.

    Raises:
        ValueError: if the schedule does not fall, there is not a step size for each level but the first, or
            steps are to be adjusted and the model has no energy.
    """
    if not schedule or any(s >= t for t, s in pairwise(schedule)) or schedule[-1] <= 0:
        raise ValueError("a schedule must fall, and end above 0")
    if step_sizes is not None and len(step_sizes) != len(schedule) - 1:
        raise ValueError(f"{len(schedule)} levels need {len(schedule) - 1} step sizes, got {len(step_sizes)}")
    free = start[0].numel() if condition.free is None else int(condition.free.expand(start.shape)[0].sum())
    relative = 1.65**2 * max(1, free) ** (-1 / 3) if step_size is None else step_size
    levels = [start.new_full((len(start),), t) for t in schedule]
    images = condition.hold(start, levels[0])
    found = evaluate(model, images, levels[0])
    log_weight = None
    if adjust:
        log_weight = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        if start_energy is not None:
            log_weight = start_energy.double() - _energy(found)
    acceptance, used, grown = [], [], [log_weight]
    for j, ((t, s), level) in enumerate(zip(pairwise(schedule), levels[1:], strict=True)):
        new, ratio = step_down(found, images, (t, s), generator, condition, prior)
        images = condition.hold(new, level)
        there = evaluate(model, images, level)
        if log_weight is not None:
            log_weight = log_weight + _energy(found) - _energy(there) + ratio
            grown.append(log_weight)
        found = there
        if steps:
            used.append(relative if step_sizes is None else step_sizes[j])
            images, found, accepted = mala(
                model,
                images,
                s,
                steps=steps,
                step_size=used[-1] * s,
                generator=generator,
                adjust=adjust,
                condition=condition,
                found=found,
            )
            acceptance.append(float(accepted.mean()))
            if adjust:
                relative *= math.exp(_PATIENCE * (acceptance[-1] - BEST_ACCEPTANCE))
    path = None if log_weight is None else torch.stack([w for w in grown if w is not None], dim=1)
    return Annealed(images, log_weight, acceptance, used, path)


def _energy(found: Gradients) -> Tensor:
    if found.energy is None:
        raise ValueError("a denoiser has no energy to weigh samples by: adjust=False")
    return found.energy.double()
