r"""Noise: variances, decibels, corruption, and draws that do not depend on the number of ranks.

The corrupted image is y = x + √t z with z standard normal; t is a *variance* in pixel².
Source: Guth et al. 2025, arXiv 2506.05310, section 2.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

TRAINING, MEASURING, SAMPLING = 0, 1, 2
"""First numbers of random keys, so that what training draws is never what measuring or sampling draws."""


GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0
"""Its multiples' fractional parts fill [0, 1) evenly, however many are taken."""


def psnr(noise_variance: float) -> float:
    """Convert a noise variance in pixel² to decibels, −10 log10 t, for pixels in [0, 1]."""
    return 10.0 * math.log10(1.0 / noise_variance)


def in_decibels(noise_variance: float) -> str:
    """How a noise variance is named for people: its PSNR to a tenth of a decibel, `30` or `22.5`."""
    return f"{round(psnr(noise_variance), 1):g}"


def variance_at_psnr(decibels: float) -> float:
    """Convert decibels to a noise variance in pixel², t = 10^(−dB/10)."""
    return math.pow(10.0, -decibels / 10.0)


def corrupt(clean: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """Add noise to images: y = x + √t z.

    Args:
        clean: images x, shape (B, C, H, W).
        noise: standard normal z, shape (B, C, H, W).
        noise_variance: t ≥ 0 in pixel², shape (B,).

    Returns:
        Noisy images y, shape (B, C, H, W).
    """
    return clean + noise_variance.sqrt()[:, None, None, None] * noise


def log_uniform(uniform: Tensor, t_min: float, t_max: float) -> Tensor:
    """Map uniform numbers in [0, 1] to noise variances log-uniform on [t_min, t_max].

    Args:
        uniform: numbers in [0, 1], any shape.
        t_min: smallest variance in pixel², > 0.
        t_max: largest variance in pixel², > t_min.

    Returns:
        Noise variances in pixel², of the same shape.

    Raises:
        ValueError: if the range is empty or not positive.
    """
    if not 0.0 < t_min < t_max:
        raise ValueError(f"noise variances need 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")
    low, high = math.log(t_min), math.log(t_max)
    # exp(log(...)) may leave the range by a rounding error; the promise is kept by clamping.
    return torch.exp(low + (high - low) * uniform).clamp(t_min, t_max)


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """Make a random generator that depends on a key of integers and on nothing else.

    Args:
        device: where the generator draws.
        *key: any integers, such as (TRAINING, seed, step, stream).

    Returns:
        A fresh generator. Equal keys give equal draws on the same kind of device.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def fixed_noise(indices: Sequence[int], shape: Sequence[int], seed: int, draw: int = 0) -> Tensor:
    """Draw the noise that belongs to given images, whatever batch or rank they are in.

    Args:
        indices: the images' positions in their data set, length B.
        shape: shape of one image (C, H, W).
        seed: the run's seed.
        draw: which of an image's independent draws.

    Returns:
        Standard normal noise of shape (B, C, H, W), float32, on the CPU.
    """
    generators = [_of_image(index, seed, draw, 0) for index in indices]
    return torch.stack([torch.randn(*shape, generator=g, dtype=torch.float32) for g in generators])


def fixed_uniform(indices: Sequence[int], shape: Sequence[int], seed: int, draw: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) that belong to given images, float32, on the CPU.

    Args:
        indices: the images' positions in their data set, length B.
        shape: shape of what one image gets.
        seed: the run's seed.
        draw: which of an image's independent draws.

    Returns:
        Numbers of shape (B, *shape).
    """
    generators = [_of_image(index, seed, draw, 1) for index in indices]
    return torch.stack([torch.rand(*shape, generator=g, dtype=torch.float32) for g in generators])


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent signs ±1, for Hutchinson's trace.

    Turned by `StationaryGaussian.synthesize` they are signs in the basis of the images' spectrum. Any
    orthonormal basis will do; in that one the Hessian is nearly diagonal, and the trace nearly free of noise.

    Args:
        shape: of the result.
        generator: on the CPU.

    Returns:
        Numbers v with E v vᵀ = I, float32.
    """
    return 2.0 * torch.randint(0, 2, tuple(shape), generator=generator).float() - 1.0


def fixed_signs(indices: Sequence[int], shape: Sequence[int], seed: int, draw: int = 0) -> Tensor:
    """Independent signs ±1 that belong to given images, float32, on the CPU.

    Args:
        indices: the images' positions in their data set, length B.
        shape: shape of one image (C, H, W).
        seed: the run's seed.
        draw: which of an image's independent draws.

    Returns:
        Signs v with E v vᵀ = I, shape (B, C, H, W).
    """
    return torch.stack([random_signs(shape, _of_image(index, seed, draw, 2)) for index in indices])


def _of_image(index: int, seed: int, draw: int, kind: int) -> torch.Generator:
    return seeded_generator(torch.device("cpu"), MEASURING, seed, int(index), draw, kind)
