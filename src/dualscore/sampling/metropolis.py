r"""Langevin steps at one noise variance, which the energy accepts or rejects; and what may be known.

A step of size ε (pixel²) proposes y' = y − ½ε ∇_y U + √ε z and accepts it with probability
min(1, exp(U(y) − U(y')) q(y | y') / q(y' | y)), q(y' | y) = N(y'; y − ½ε ∇_y U, ε I). Every such step leaves
p(y | t) exactly as it is, whatever ε; without the acceptance it leaves another density, off by O(ε).
Source: Roberts and Tweedie 1996, Exponential convergence of Langevin distributions, algorithm MALA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import Gradients, ScoreModel
from dualscore.noise import corrupt, normal_like

Random = torch.Generator | Sequence[torch.Generator]
"""One generator for all chains, or one per chain, which then moves alike in every batch."""


class Condition:
    """Nothing is known: samples are of p(y | t). The base of the others."""

    free: Tensor | None = None
    """1 where a pixel is sampled, 0 where it is known, broadcast to (B, C, H, W); None: all."""

    def hold(self, images: Tensor, noise_variance: Tensor) -> Tensor:  # noqa: ARG002 - nothing is known
        """Images (B, C, H, W) at noise variances t (B,) with what is known put into its place."""
        return images

    def add(self, found: Gradients, images: Tensor, noise_variance: Tensor) -> Gradients:  # noqa: ARG002
        """The gradients of the conditional energy at noise variances t (B,), given those of U."""
        return found


NOTHING = Condition()


@dataclass(frozen=True)
class Noisy(Condition):
    r"""A noisy version y of the clean image x is known: samples are of p(y_s | y), at s → 0 of p(x | y).

    The images between are y_s = x + √s z, and y is y_s with noise of variance t − s added, so that
    −log p(y_s | y) = U(y_s, s) + ‖y − y_s‖² / 2(t − s) + constant, without approximation.

    Args:
        noisy: y, shape (B, C, H, W).
        noise_variance: t in pixel², above every level that is sampled.
    """

    noisy: Tensor
    noise_variance: float

    def add(self, found: Gradients, images: Tensor, noise_variance: Tensor) -> Gradients:
        """U and ∇U with the pull towards the noisy image, for images (B, C, H, W) at levels s (B,)."""
        rest = self.noise_variance - noise_variance
        difference = images - self.noisy
        energy = None
        if found.energy is not None:
            energy = found.energy + 0.5 * difference.square().sum(dim=(1, 2, 3)) / rest
        return Gradients(found.image + difference / rest[:, None, None, None], None, energy)


class Known(Condition):
    r"""Some pixels of the clean image are known; the others are sampled.

    At noise variance t the known pixels are held at x + √t z, with one z for all levels. So the free pixels
    have the energy U(y, t) at those values: that of their conditional density given one noisy version of
    what is known, not that of p(y_free | x_known), which nobody knows. It is an approximation on the way
    only. At the last level, where t is next to nothing, it is p(x_free | x_known); Metropolis steps sample
    that, and the weights of `anneal` correct how the samples came there.

    Args:
        clean: x, shape (B, C, H, W); what is not known in it is not looked at.
        known: bool, shape (H, W), the same for all images.
        noise: standard normal z, shape (B, C, H, W).
    """

    def __init__(self, clean: Tensor, known: Tensor, noise: Tensor) -> None:
        self.clean, self.known, self.noise = clean, known.expand(clean.shape), noise
        self.free = (~self.known).to(clean.dtype)

    def hold(self, images: Tensor, noise_variance: Tensor) -> Tensor:
        """Images (B, C, H, W) with the known pixels at their noisy values, at variances t (B,)."""
        return torch.where(self.known, corrupt(self.clean, self.noise, noise_variance), images)


class Chain(NamedTuple):
    """The chains' positions, and the share of proposals accepted."""

    images: Tensor  # y, shape (B, C, H, W)
    found: Gradients  # U and its gradients there, in t too where the model has an energy
    acceptance: Tensor  # of each chain, shape (B,); 1 without adjustment, NaN without steps


def evaluate(model: ScoreModel, images: Tensor, t: Tensor) -> Gradients:
    """A model's gradients without a graph, of images (B, C, H, W) at noise variances t (B,)."""
    with torch.no_grad():
        return model.gradients(images, t)


def free_noise(images: Tensor, generator: Random, condition: Condition) -> Tensor:
    """Standard normal noise where pixels are free, 0 elsewhere, of the images' shape (B, C, H, W)."""
    noise = _draw(normal_like, images, generator)
    return noise if condition.free is None else noise * condition.free


def _draw(draw: Callable[[Tensor, torch.Generator], Tensor], images: Tensor, generator: Random) -> Tensor:
    """Random numbers for a batch of images, by one generator or by one an image."""
    if isinstance(generator, torch.Generator):
        return draw(images, generator)
    return torch.cat([draw(image, one) for image, one in zip(torch.split(images, 1), generator, strict=True)])


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, dtype=torch.float64, device=images.device)


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
        accept = _draw(_uniform, images, generator).log() < log_ratio  # never where that is not a number
        accepted += accept
        images = _chosen(accept, proposed, images)
        pairs = zip(new, found, strict=True)
        found = Gradients(*(None if a is None or b is None else _chosen(accept, a, b) for a, b in pairs))  # type: ignore[arg-type]
    return Chain(images, found, accepted / steps if adjust else torch.ones_like(t))


def _square(images: Tensor) -> Tensor:
    return images.double().square().sum(dim=(1, 2, 3))


def _chosen(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.view(-1, *[1] * (new.ndim - 1)), new, old)
