r"""Annealed sampling: from noise down a falling schedule of noise variances, with weights that make it exact.

Between two levels t > s a step back along the diffusion is drawn, y_s ~ q(y_s | y_t), and Langevin steps at s
follow, which the energy accepts or rejects. The way forward is known: it adds noise. So with

    w = exp(−U(y_s, s)) N(y_t; y_s, (t−s) I) / (exp(−U(y_t, t)) q(y_s | y_t))

the pair (y_s, y_t) has the right weight; steps that leave p(y | t) as it is change no weights; and samples
weighted with the product over all levels are of p(y | t_min) exactly, as many as there are, whatever the
schedule and the steps: coarse ones only make weights uneven. What is compared are energies of different
levels, so this is where normalization counts: the mean of the weights is Z(t_min)/Z of the start, 1 for a
normalized energy. Modes that share no mass at t_min get their right shares from where they still did.
Step sizes may follow the acceptance of pilots, chains that are not weighed: one that chose its own step
size by where it has been would be there more often than its weight says. Source: Neal 2001, Annealed
importance sampling, arXiv physics/9803008; Del Moral, Doucet, Jasra 2006, Sequential Monte Carlo samplers,
equation 12, with the diffusion as backward kernel.

The mean of y_s given y_t is y_t − (t−s) ∇_y U and its covariance (t−s)(I − (t−s) ∇²U), both exactly. ∇²U is
not known, but its trace is, by the heat equation: ΔU = 2 ∂_t U + ‖∇_y U‖², the second gradient of dual score
matching for free. So the step is drawn from

    q(y_s | y_t) = N(y_t − (t−s) ∇_y U, (t−s)(I − (t−s) H)),

with H of that trace: H = λ I with λ = ΔU/d, or, where the clean images' Gaussian N(μ, Σ) is known,
H = (βΣ + t I)^(−1), that of an image of contrast β times the average, one β an image: low
frequencies keep more of the noise than high ones do, and textured images less than smooth ones.
Source: Bao et al. 2022, Analytic-DPM, arXiv 2201.06503, for the variance of all images together.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import Gradients, ScoreModel
from dualscore.errors import SamplingError
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.noise import log_uniform, normal_like
from dualscore.sampling.metropolis import NOTHING, Condition, Random, evaluate, free_noise, mala

T_MIN = QUANTIZATION_VARIANCE
"""Noise variance at which sampling ends, in pixel²: that of rounding to 8 bits."""
BEST_ACCEPTANCE = 0.574
"""Acceptance of Langevin proposals at which chains move fastest. Roberts and Rosenthal 1998."""
_PATIENCE = 0.5  # how far the step size follows one level's acceptance, in nats
_CONTRASTS = torch.linspace(-16.0, 6.0, 89, dtype=torch.float64) * math.log(2.0)
"""ln β where the curvature is tabulated, in steps of a quarter of an octave."""
_AT_ONCE = 2**18
"""Numbers that such a table is computed from at once."""


def levels(t_max: float, count: int, t_min: float = T_MIN) -> list[float]:
    """`count` ≥ 2 noise variances falling from t_max to t_min by equal factors; else a SamplingError."""
    if count < 2 or not 0.0 < t_min < t_max:
        raise SamplingError(
            f"{count} noise levels from {t_max:g} to {t_min:g} pixel²: 2 or more are needed, and falling"
        )
    return log_uniform(torch.linspace(1.0, 0.0, count, dtype=torch.float64), t_min, t_max).tolist()


def start_from(
    prior: StationaryGaussian, noise_variance: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise N(μ, Σ + t I) that sampling starts from, (count, C, H, W), and its energies there, (count,).

    The noise variance t should be so large that the noisy images are nearly of that density.
    """
    clean = prior.sample(count, generator)
    noisy = clean + noise_variance**0.5 * normal_like(clean, generator)
    return noisy, prior(noisy, clean.new_full((count,), noise_variance)).energy


def resample(log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """Choose samples by their log weights (B,): places in rising order, int64, (B,).

    Systematic resampling: each is chosen ⌊Bw⌋ or ⌈Bw⌉ times.
    """
    count = len(log_weight)
    start = torch.rand(1, generator=generator, dtype=log_weight.dtype, device=log_weight.device)
    place = (torch.arange(count, device=log_weight.device) + start) / count
    return torch.searchsorted(log_weight.softmax(0).cumsum(0), place).clamp(max=count - 1)


def first_step(dimension: int) -> float:
    """The best size of Langevin steps for a normal density of variance 1. Roberts and Rosenthal 1998."""
    best: float = 1.65**2 * max(1, dimension) ** (-1 / 3)
    return best


def followed(step_size: float, acceptance: Tensor) -> float:
    """A step size after the acceptance of some chains, shape (n,), which it leads towards 0.574."""
    return step_size * math.exp(_PATIENCE * (float(acceptance.mean()) - BEST_ACCEPTANCE))


def mean_curvature(found: Gradients) -> Tensor | None:
    """ΔU/d, shape (B,), by the heat equation; None without ∂_t U."""
    if found.noise_variance is None:
        return None
    squares = found.image.square().sum(dim=(1, 2, 3))
    return (2.0 * found.noise_variance + squares) / found.image[0].numel()


def contrast(curvature: Tensor, prior: StationaryGaussian, noise_variance: float) -> Tensor:
    """β for which N(μ, βΣ + t I) has an image's mean curvature ΔU/d, the mean of 1/(βλ_k + t).

    From curvatures in 1/pixel², shape (B,); β is between 2^−16 and 2^6, float64, shape (B,).
    """
    scale = _CONTRASTS.to(curvature.device).flip(0)  # falling, so that the curvature rises
    spectrum = prior.eigenvalues.double().flatten()
    # A few β at once: one at a time is mostly overhead, all at once takes a photograph's spectrum 89 times.
    some = max(1, _AT_ONCE // len(spectrum))
    table = torch.cat(
        [
            (1.0 / (beta[:, None] * spectrum + noise_variance)).mean(dim=1)
            for beta in torch.split(scale.exp(), some)
        ]
    )
    wanted = curvature.double().clamp(table[0], table[-1])
    above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
    part = (wanted - table[above - 1]) / (table[above] - table[above - 1])
    return torch.lerp(scale[above - 1], scale[above], part).exp()


def step_down(
    found: Gradients,
    images: Tensor,
    levels: tuple[float, float],
    generator: Random,
    condition: Condition = NOTHING,
    prior: StationaryGaussian | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw y_s given y_t (B, C, H, W); t > s > 0 are noise variances in pixel².

    Without ∂_t U in `found` the variance is (t−s) s/t, the smallest; with `prior` it is one a frequency.
    Returns y_s and log N(y_t; y_s, (t−s) I) − log q(y_s | y_t), float64, shape (B,). A ValueError refuses
    held pixels with a variance by frequency.
    """
    t, s = levels
    if prior is not None and condition.free is not None:
        raise ValueError("held pixels and a variance by frequency do not go together: leave the prior out")
    # The share of the forward step's variance that is left; U's Hessian is below I/t, so this is ≥ s/t.
    left = images.new_full((len(images), 1, 1, 1), s / t)
    curvature = mean_curvature(found)
    if curvature is not None:
        mean = curvature.nan_to_num(1.0 / t)
        if prior is None:
            left = (1.0 - (t - s) * mean).clamp(s / t, 1.0)[:, None, None, None]
        else:
            beta = contrast(mean, prior, t).to(images.dtype)[:, None, None, None]
            left = 1.0 - (t - s) / (beta * prior.eigenvalues + t)
    free = torch.ones_like(images[:1]) if condition.free is None else condition.free
    noise = free_noise(images, generator, condition)
    spread = ((t - s) * left).sqrt() * noise
    drift = (t - s) * found.image * free
    change = (spread if prior is None else prior.synthesize(spread)) - drift
    forward = change.double().square().sum(dim=(1, 2, 3)) / (t - s)
    back = noise.double().square().sum(dim=(1, 2, 3))
    log_determinant = (left.double().log() * free).sum(dim=(1, 2, 3))
    return images + change, 0.5 * (back - forward + log_determinant)


class Annealed(NamedTuple):
    """Samples, and how they came about."""

    images: Tensor  # y at the last level, shape (B, C, H, W)
    log_weights: Tensor | None
    """Natural logs of the weights as they grew, at each level, float64, (B, L); None if not adjusted."""
    acceptance: list[float]  # the mean acceptance at each level but the first; empty without Langevin steps

    @property
    def log_weight(self) -> Tensor | None:
        """The logs of the samples' weights, float64, shape (B,); None for samples that were not adjusted."""
        return None if self.log_weights is None else self.log_weights[:, -1]


def anneal(
    model: ScoreModel,
    start: Tensor,
    schedule: Sequence[float],
    *,
    generator: Random,
    steps: int = 1,
    step_size: float | None = None,
    adjust: bool = True,
    condition: Condition = NOTHING,
    start_energy: Tensor | None = None,
    prior: StationaryGaussian | None = None,
    pilots: int = 0,
) -> Annealed:
    """Carry samples of p(y | t) from the first level of a schedule to the last.

    Args:
        model: an energy; without adjustment a denoiser does as well.
        start: samples at the first level, shape (B, C, H, W).
        schedule: noise variances t > 0 in pixel², falling.
        generator: on the images' device; one for all chains, or one a chain.
        steps: Langevin steps at each level but the first.
        step_size: of the first level's steps, relative to its t; by default 1.65² d^(−1/3), the best for a
            normal density. Adjusted steps follow the pilots' acceptance at the levels before, towards 0.574.
        adjust: accept or reject by the energy and weigh the samples; False is annealed Langevin sampling.
        condition: what is known of the images.
        start_energy: −log of the density that `start` was drawn from, shape (B,), so that the weights
            correct that too; by default it was the model's own.
        prior: the clean images' Gaussian, which gives the steps down a variance for each frequency; None
            gives them one for all. Weights are right with either, and more even with it.
        pilots: how many of `start`, the first, set the adjusted steps' size for the others, and are not
            returned. With none the steps keep their size, relative to t.

    Returns:
        The samples at the last level, their weights, and the acceptance.

    Raises:
        ValueError: if the schedule does not fall, or steps are to be adjusted and the model has no energy.
    """
    if not schedule or any(s >= t for t, s in pairwise(schedule)) or schedule[-1] <= 0:
        raise ValueError("a schedule must fall, and end above 0")
    free = start[0].numel() if condition.free is None else int(condition.free.expand(start.shape)[0].sum())
    relative = first_step(free) if step_size is None else step_size
    level = start.new_full((len(start),), schedule[0])
    images = condition.hold(start, level)
    found = evaluate(model, images, level)
    log_weight = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    if adjust and start_energy is not None:
        log_weight = start_energy.double() - _energy(found)
    acceptance, grown = [], [log_weight]
    for t, s in pairwise(schedule):
        new, ratio = step_down(found, images, (t, s), generator, condition, prior)
        level = torch.full_like(level, s)
        images = condition.hold(new, level)
        there = evaluate(model, images, level)
        if adjust:
            log_weight = log_weight + _energy(found) - _energy(there) + ratio
            grown.append(log_weight)
        found = there
        if steps:
            images, found, accepted = mala(
                model,
                images,
                s,
                steps=steps,
                step_size=relative * s,
                generator=generator,
                adjust=adjust,
                condition=condition,
                found=found,
            )
            acceptance.append(float(accepted[pilots:].mean()))
            if adjust and pilots:
                relative = followed(relative, accepted[:pilots])
    return Annealed(images[pilots:], torch.stack(grown, dim=1)[pilots:] if adjust else None, acceptance)


def _energy(found: Gradients) -> Tensor:
    if found.energy is None:
        raise ValueError("a denoiser has no energy to weigh samples by: adjust=False")
    return found.energy.double()
