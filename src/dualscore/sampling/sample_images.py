"""Samples of a trained model: images from nothing, from a noisy image, from a part of one."""

import math
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import EnergyModel, ScoreModel
from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.ode import WhitenedFlow, integrate
from dualscore.model import ImageModel
from dualscore.noise import SAMPLING, normal_like, seeded_generator
from dualscore.sampling.annealed import T_MIN, anneal, levels, start_from
from dualscore.sampling.metropolis import NOTHING, Condition, Known, Noisy

UNADJUSTED_STEP = 0.1  # size of Langevin steps that nothing corrects, relative to t
PILOTS = 4
"""Chains that set the step size of a batch of Metropolis samples, beside those that become samples."""
SAMPLES = -3  # second number of the random keys of samples; others have runs' seeds or splits there


class Method(Enum):
    """Ways to draw samples: see `dualscore.sampling.annealed` and `flow`."""

    metropolis = "metropolis"
    langevin = "langevin"
    flow = "flow"


class Samples(NamedTuple):
    """Samples of a model."""

    images: Tensor  # shape (B, C, H, W), at the last level's noise variance; pixels may leave [0, 1] a little
    log_weight: Tensor | None
    """Metropolis only: log weights that make the samples exact, see `annealed`, float64, shape (B,)."""
    acceptance: list[float]  # Metropolis only: the share of proposals accepted at each level but the first
    evaluations: int  # network evaluations per image


def last_variance(t_min: float) -> float:
    """Noise variance at which samples end, in pixel², of a model trained down to t_min: not below that."""
    return max(T_MIN, t_min)


def sample(
    model: ImageModel,
    count: int,
    *,
    method: Method = Method.metropolis,
    steps: int = 200,
    tolerance: float = 1e-3,
    seed: int = 0,
    batch_size: int = 64,
) -> Samples:
    """Draw images from a model.

    Args:
        model: with the Gaussian of its training images, where sampling starts.
        count: how many.
        method: how.
        steps: noise levels, with one Langevin step at each; the flow chooses its own.
        tolerance: of the flow, in standard deviations.
        seed: of all that is random.
        batch_size: images at once.

    Returns:
        The samples, on the model's device.

    Raises:
        SamplingError: if the model lacks what sampling needs, or samples are not finite.
    """
    prior = gaussian_start(model)
    check_energy(model, method)
    generator = seeded_generator(prior.mean.device, SAMPLING, SAMPLES, seed)
    t_min, t_max = last_variance(model.t_min), model.t_max
    schedule = levels(t_max, steps, t_min) if method is not Method.flow else []

    def draw(part: slice) -> Samples:
        size = part.stop - part.start
        if method is Method.flow:
            ends = {"t_min": t_min, "t_max": t_max, "tolerance": tolerance}
            images, evaluations = flow(model.score_model, prior, size, **ends, generator=generator)
            return Samples(images, None, [], evaluations)
        start, energy = start_from(prior, schedule[0], size + _pilots(method), generator)
        return _anneal(model, start, schedule, method, generator, start_energy=energy)

    return _in_batches(draw, count, batch_size)


def posterior(
    model: ImageModel,
    noisy: Tensor,
    noise_variance: float,
    *,
    method: Method = Method.metropolis,
    steps: int = 100,
    seed: int = 0,
    batch_size: int = 64,
) -> Samples:
    """Draw clean images that noisy ones may come from, x ~ p(x | y); `ImageModel.denoise` is their mean.

    One sample for each y (B, C, H, W); an image repeated gets independent ones, and weights compare samples
    of the same y. Its noise variance, in pixel², lies above T_MIN and the smallest of training. The rest is
    as in `sample`, and so are the errors; the flow is no method here.
    """
    check_energy(model, method)
    schedule = levels(noise_variance, steps, last_variance(model.t_min))
    noisy = noisy.to(model.like)
    generator = seeded_generator(noisy.device, SAMPLING, SAMPLES, seed)

    def draw(part: slice) -> Samples:
        led = _led(noisy[part], method)
        return _anneal(model, led, schedule, method, generator, Noisy(led, noise_variance))

    return _in_batches(draw, len(noisy), batch_size)


def inpaint(
    model: ImageModel,
    clean: Tensor,
    known: Tensor,
    *,
    method: Method = Method.metropolis,
    steps: int = 200,
    seed: int = 0,
    batch_size: int = 64,
) -> Samples:
    """Draw the missing pixels of images given the others; `Known` says what is exact in it, and what not.

    One sample for each clean image x (B, C, H, W), with the pixels that `known`, bool (H, W), marks as they
    were given; the others are not looked at. Weights compare samples of the same image; their mean is the
    density of its known pixels. The rest is as in `sample`, and so are the errors; the flow is no method
    here.
    """
    prior = gaussian_start(model)
    check_energy(model, method)
    if known.shape != clean.shape[-2:] or bool(known.all()):
        raise SamplingError(f"a mask of shape {tuple(clean.shape[-2:])} that hides some pixels is needed")
    schedule = levels(model.t_max, steps, last_variance(model.t_min))
    clean, known = clean.to(prior.mean), known.to(prior.mean.device)
    generator = seeded_generator(clean.device, SAMPLING, SAMPLES, seed)

    def draw(part: slice) -> Samples:
        held = _led(clean[part], method)
        noise, white = normal_like(held, generator), normal_like(held, generator)
        spread = schedule[0] + prior.eigenvalues.mean()  # of pixels as if they were independent
        start = prior.mean[:, None, None] + spread.sqrt() * white
        density = white.square() + torch.log(2.0 * math.pi * spread)
        energy = 0.5 * (density * ~known).sum(dim=(1, 2, 3))
        found = _anneal(model, start, schedule, method, generator, Known(held, known, noise), energy)
        return found._replace(images=torch.where(known, clean[part], found.images))

    return _in_batches(draw, len(clean), batch_size)


def flow(
    model: ScoreModel,
    prior: StationaryGaussian,
    count: int,
    *,
    t_min: float,
    t_max: float,
    tolerance: float,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Draw samples of p(y | t_min) by following the score from N(μ, Σ + t_max I).

    In the whitened coordinates the start is standard normal, whatever the spectrum. Returns images of shape
    (count, C, H, W), and the evaluations for each. The solver's tolerance is in standard deviations. Source:
    Song et al. 2021, arXiv 2011.13456, section 4.3.
    """
    whitened = WhitenedFlow(prior)

    def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (v,) = state
        y = whitened.image(v, t)
        return (whitened.velocity(v, model.gradients(y, t.expand(len(y)), time=False).image, t),)

    with torch.no_grad():
        start = normal_like(prior.eigenvalues.expand(count, -1, -1, -1), generator)
        (v,), evaluations = integrate(velocity, (start,), t_max, t_min, tolerance)
        return whitened.image(v, prior.mean.new_tensor(t_min)), evaluations


def gaussian_start(model: ImageModel) -> StationaryGaussian:
    """The Gaussian that samples start from; SamplingError where a model has none."""
    if model.prior is None:
        raise SamplingError(
            "the model does not hold the Gaussian of its training images, where sampling starts: "
            "only checkpoints of dualscore's own training do"
        )
    return model.prior


def check_energy(model: ImageModel, method: Method) -> None:
    """Refuse to accept steps by the energy of a denoiser, with a SamplingError."""
    if method is Method.metropolis and not isinstance(model.score_model, EnergyModel):
        raise SamplingError(
            "the model is a denoiser: it has no energy to accept steps by; take the method langevin"
        )


def _pilots(method: Method) -> int:
    return PILOTS if method is Method.metropolis else 0


def _led(images: Tensor, method: Method) -> Tensor:
    """Images that chains are conditioned on, behind those of their pilots, which are some of the same."""
    rows = torch.arange(-_pilots(method), len(images), device=images.device) % len(images)
    return images[rows]


def _anneal(
    model: ImageModel,
    start: Tensor,
    schedule: list[float],
    method: Method,
    generator: torch.Generator,
    condition: Condition = NOTHING,
    start_energy: Tensor | None = None,
) -> Samples:
    if method is Method.flow:
        raise SamplingError("the flow samples without conditions only: take langevin or metropolis")
    adjust = method is Method.metropolis
    found = anneal(
        model.score_model,
        start,
        schedule,
        generator=generator,
        step_size=None if adjust else UNADJUSTED_STEP,
        adjust=adjust,
        condition=condition,
        start_energy=start_energy,
        pilots=_pilots(method),
    )
    # One for the first level; each other is evaluated where it is reached, and after its Langevin step.
    return Samples(found.images, found.log_weight, found.acceptance, 2 * len(schedule) - 1)


def _in_batches(draw: Callable[[slice], Samples], count: int, batch_size: int) -> Samples:
    """Samples of all batches together; SamplingError if some are not finite."""
    found = [draw(slice(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]
    images = torch.cat([part.images for part in found])
    if wrong := int((~images.isfinite().flatten(1).all(dim=1)).sum()):
        raise SamplingError(
            f"{wrong} of {len(images)} samples are not finite: the model's score is wrong somewhere; more "
            "noise levels may help"
        )
    weights = [part.log_weight for part in found if part.log_weight is not None]
    sizes = torch.tensor([float(len(part.images)) for part in found])
    accepted = torch.tensor([part.acceptance for part in found])
    return Samples(
        images,
        torch.cat(weights) if weights else None,
        ((sizes / sizes.sum()) @ accepted).tolist(),
        max(part.evaluations for part in found),
    )
