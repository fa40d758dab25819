"""Denoisers of azula and deepinv: modules that give the image, told a time or a standard deviation."""

from typing import Any

import torch
from torch import Tensor

from dualscore.denoisers import GivenDenoiser, of_pixels
from dualscore.errors import ModelError

BRACKETED, HALVED = 1024, 60
"""Times that bracket a noise level, and how often the bracket is halved: to the last digit of a double."""
T_SMALLEST = 1e-6


def of_deepinv(
    denoiser: Any,  # a deepinv.models.Denoiser
    *,
    deviations: tuple[float, float],
) -> GivenDenoiser:
    """A `Denoiser` of deepinv: `denoiser(x, sigma)` of pixels in [0, 1] and standard deviations (B,).

    Args:
        denoiser: the module, in evaluation mode.
        deviations: smallest and largest standard deviation that it was trained for, in pixels of [0, 1];
            DRUNet's is about 0.2. Above it the bound's prior takes over, so a small range has a loose bound.

    Returns:
        The denoiser of pixels in [0, 1].
    """
    low, high = deviations
    return of_pixels(denoiser, t_range=(low**2, high**2), level="deviation")


def of_azula(
    denoiser: Any,  # an azula.denoise.Denoiser
    *,
    pixels: tuple[float, float] = (-1.0, 1.0),
    **given: Any,  # whatever its backbone takes
) -> GivenDenoiser:
    """A `Denoiser` of azula: `denoiser(x_t, t).mean` of x_t = α(t) x + σ(t) z, with its own schedule.

    Args:
        denoiser: the module, in evaluation mode.
        pixels: black and white as it sees them.
        **given: arguments that it takes beside, such as a label.

    Returns:
        The denoiser of pixels in [0, 1], known where its schedule's σ/α lies for t from 1e-6 to 1.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not callable(schedule):
        raise ModelError(f"a {type(denoiser).__name__} has no schedule: is it one of azula's denoisers?")
    times = torch.linspace(T_SMALLEST, 1.0, BRACKETED, dtype=torch.float64)
    deviations = _deviations(schedule, times)
    kept = deviations.isfinite() & (deviations > 0)
    times, deviations = times[kept], deviations[kept]
    if len(times) < 2 or bool((deviations.diff() <= 0).any()):
        raise ModelError("the schedule's σ/α does not rise with time: no time belongs to a noise level")

    def denoise(noisy: Tensor, deviation: Tensor) -> Tensor:
        wanted = deviation.detach().double().cpu()
        right = torch.searchsorted(deviations, wanted).clamp(1, len(times) - 1)
        low, high = times[right - 1], times[right]
        for _ in range(HALVED):
            middle = 0.5 * (low + high)
            below = _deviations(schedule, middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        alpha = schedule(low)[0].to(noisy)
        found = denoiser(alpha[:, None, None, None] * noisy, low.to(noisy), **given)
        mean: Tensor = getattr(found, "mean", found)
        return mean  # a distribution's; a tensor's method is told as no tensor

    width = pixels[1] - pixels[0]
    t_range = tuple((float(end) / width) ** 2 for end in (deviations[0], deviations[-1]))
    return of_pixels(denoise, t_range=(t_range[0], t_range[1]), pixels=pixels, level="deviation")


def _deviations(schedule: Any, times: Tensor) -> Tensor:  # a function of times
    alpha, sigma = schedule(times)
    found: Tensor = sigma / alpha
    return found
