"""Conditions for sampling: nothing, a noisy version of the image, or some of its pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dualscore.energy import Gradients
from dualscore.noise import corrupt


class Condition:
    """Nothing: samples are of p(y | t). The base of the others."""

    free: Tensor | None = None
    """1 where a pixel is sampled, 0 where it is known, broadcast to (B, C, H, W); None: all."""

    def hold(self, images: Tensor, noise_variance: Tensor) -> Tensor:  # noqa: ARG002 - nothing is known
        """Images (B, C, H, W) at noise variances t (B,) with what is known put into its place."""
        return images

    def add(self, found: Gradients, images: Tensor, noise_variance: Tensor) -> Gradients:  # noqa: ARG002
        """The gradients of the conditional energy at noise variances t (B,), given those of U."""
        return found


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


NOTHING = Condition()
