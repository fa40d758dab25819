"""What a denoiser answers, looked at before it is measured: each image's own, and a digest of it."""

import hashlib
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dualscore.denoisers import GivenDenoiser
from dualscore.energy import ScoreModel
from dualscore.errors import ModelError
from dualscore.measuring.measured import Grid
from dualscore.measuring.subject import Images, Subject
from dualscore.noise import corrupt, in_decibels, variance_at_psnr

APART = 0.05
"""How far, in deviations of the noise, an image's answer in a batch may lie from what it is alone."""


def digest(parts: Iterable[Tensor]) -> str:
    """SHA-256 of tensors of any shape, one after another."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.cpu().numpy().tobytes())
    return found.hexdigest()


def answers(subject: Subject, clean: Tensor, grid: Grid) -> str:
    """A digest of what a denoiser gives for noisy images in every stratum, of clean ones (B, C, H, W)."""
    noise = Images(clean, list(range(len(clean)))).noise(subject, 0)
    middles = (math.sqrt(grid.edge(i) * grid.edge(i + 1)) for i in range(grid.number))
    levels = (torch.full_like(clean[:, 0, 0, 0], middle) for middle in middles)
    return digest(subject.model.denoise(corrupt(clean, noise, t), t).float() for t in levels)


def refuse_coupled(at: Callable[[Tensor], tuple[Subject, Tensor]], places: Tensor) -> None:
    """Refuse a denoiser whose answer for an image, at places (B,), depends on its batch: ModelError."""
    subject, clean = at(places)
    low, high = subject.t_range
    highest = max(low, min(high, variance_at_psnr(-10.0)))
    lowest = min(max(low, variance_at_psnr(20.0)), highest)
    share = torch.linspace(0.0, 1.0, len(clean), dtype=clean.dtype, device=clean.device)
    t = lowest * (highest / lowest) ** share
    noisy = corrupt(clean, Images(clean, places.tolist()).noise(subject, 0), t)
    together = subject.model.denoise(noisy, t)
    for i, place in enumerate(torch.split(places, 1)):
        alone = at(place)[0].model.denoise(noisy[i : i + 1], t[i : i + 1])
        apart = float((together[i] - alone[0]).square().mean().sqrt()) / math.sqrt(float(t[i]))
        if not apart <= APART:
            raise ModelError(
                f"for an image at {in_decibels(float(t[i]))} dB the denoiser gives in a batch what lies "
                f"{apart:.2g} deviations of the noise from what it gives for it alone: it must take a noise "
                "level for each image, (B,), mix no images (batch normalization?), not be random (dropout?)"
            )


def refuse_without_gradient(denoiser: ScoreModel, clean: Tensor, t_range: tuple[float, float]) -> None:
    """Refuse a function for the ODE whose derivative torch doesn't know: its trace would be that of y/t.

    Of clean images (B, C, H, W).
    """
    if not isinstance(denoiser, GivenDenoiser):
        return
    with torch.enable_grad():
        noisy = clean.clone().requires_grad_()
        given = denoiser.function(noisy, torch.full_like(clean[:, 0, 0, 0], math.sqrt(math.prod(t_range))))
        known = (
            given.requires_grad and torch.autograd.grad(given.sum(), noisy, allow_unused=True)[0] is not None
        )
    if not known:
        raise ModelError(
            "the ODE needs the denoiser's derivative, which it cuts (torch.no_grad, detach, numpy): "
            "leave that out, or leave ode_images at 0"
        )
