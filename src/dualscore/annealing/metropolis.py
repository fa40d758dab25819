r"""Langevin steps at one noise variance, which the energy accepts or rejects.

A step of size ε (pixel²) proposes y' = y − ½ε ∇_y U + √ε z and accepts it with probability
min(1, exp(U(y) − U(y')) q(y | y') / q(y' | y)), q(y' | y) = N(y'; y − ½ε ∇_y U, ε I). Every such step leaves
p(y | t) exactly as it is, whatever ε; without the acceptance it leaves another density, off by O(ε).
Source: Roberts and Tweedie 1996, Exponential convergence of Langevin distributions, algorithm MALA.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.annealing.conditions import NOTHING, Condition
from dualscore.energy import Gradients, ScoreModel
from dualscore.noise import normal_like

Random = torch.Generator | Sequence[torch.Generator]
"""One generator for all chains, or one per chain, which then moves alike in every batch."""


class Chain(NamedTuple):
    """The chains' positions, and the share of proposals accepted."""

    images: Tensor  # y, shape (B, C, H, W)
    found: Gradients  # U and its gradients there, in t too where the model has an energy
    acceptance: Tensor
    """The share accepted of each chain's proposals, shape (B,); 1 without adjustment, NaN without steps."""


def evaluate(model: ScoreModel, images: Tensor, t: Tensor) -> Gradients:
    """A model's gradients without a graph, of images (B, C, H, W) at noise variances t (B,)."""
    with torch.no_grad():
        return model.gradients(images, t)


def free_noise(images: Tensor, generator: Random, condition: Condition) -> Tensor:
    """Standard normal noise where pixels are free, 0 elsewhere, of the images' shape (B, C, H, W)."""
    if isinstance(generator, torch.Generator):
        noise = normal_like(images, generator)
    else:
        noise = torch.stack([normal_like(image, one) for image, one in zip(images, generator, strict=True)])
    return noise if condition.free is None else noise * condition.free


def _uniform(count: int, generator: Random, device: torch.device) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(count, generator=generator, dtype=torch.float64, device=device)
    draws = [torch.rand(1, generator=one, dtype=torch.float64, device=device) for one in generator]
    return torch.cat(draws)


def mala(
    model: ScoreModel,
    images: Tensor,
    noise_variance: float,
    *,
    steps: int,
    step_size: float,
    generator: Random,
    adjust: bool = True,
    condition: Condition = NOTHING,
    found: Gradients | None = None,
) -> Chain:
    """Move images by Langevin steps at one noise variance, one chain an image.

    Args:
        model: an energy; without adjustment a denoiser does as well.
        images: where the chains start, y, shape (B, C, H, W).
        noise_variance: t ≥ 0, in pixel².
        steps: how many; each is one evaluation of the model.
        step_size: ε in pixel², the variance of a step's noise.
        generator: on the images' device; one for all chains, or one a chain.
        adjust: accept or reject by the energy (MALA); False takes every step (unadjusted Langevin).
        condition: what is known of the images.
        found: what the model says of `images`, where that is known already.

    Returns:
        Where the chains are, and their acceptance.

    Raises:
        ValueError: if steps are to be adjusted and the model has no energy.
    """
    t = images.new_full((len(images),), noise_variance)
    images = condition.hold(images, t)
    free = 1.0 if condition.free is None else condition.free
    found = evaluate(model, images, t) if found is None else found
    if adjust and found.energy is None:
        raise ValueError("a denoiser has no energy to accept steps by: adjust=False")
    accepted = torch.zeros_like(t)
    for _ in range(steps):
        here = condition.add(found, images, t)
        drift = -0.5 * step_size * here.image * free
        noise = free_noise(images, generator, condition)
        proposed = images + drift + step_size**0.5 * noise
        new = evaluate(model, proposed, t)
        if not adjust:
            images, found = proposed, new
            continue
        there = condition.add(new, proposed, t)
        assert here.energy is not None
        assert there.energy is not None
        back = images - proposed + 0.5 * step_size * there.image * free
        log_ratio = here.energy.double() - there.energy.double() + 0.5 * _square(noise)
        log_ratio = log_ratio - 0.5 * _square(back) / step_size
        uniform = _uniform(len(images), generator, t.device)
        accept = uniform.log() < log_ratio  # never where that is not a number
        accepted += accept
        images, found = _choose(accept, proposed, images), _chosen(accept, new, found)
    return Chain(images, found, accepted / steps if adjust else torch.ones_like(t))


def _square(images: Tensor) -> Tensor:
    return images.double().square().sum(dim=(1, 2, 3))


def _choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.view(-1, *[1] * (new.ndim - 1)), new, old)


def _chosen(accept: Tensor, new: Gradients, old: Gradients) -> Gradients:
    pairs = zip(new, old, strict=True)
    return Gradients(*(None if a is None or b is None else _choose(accept, a, b) for a, b in pairs))  # type: ignore[arg-type]
