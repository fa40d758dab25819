r"""Noise: variances, decibels, corruption, and draws that do not depend on the number of ranks.

The corrupted image is y = x + √t z with z standard normal; t is a *variance* in pixel².
Source: Guth et al. 2025, arXiv 2506.05310, section 2.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TRAINING, MEASURING, SAMPLING, CROPS = 0, 1, 2, 3
"""First numbers of random keys, so that what training draws is never what measuring or sampling draws."""
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0
"""Its multiples' fractional parts fill [0, 1) evenly, however many are taken."""
HIDES_LEVELS = 1e-5
"""Variance in pixel² at which noise hides 8-bit grey levels: its standard deviation is 0.8 of their step."""
LOW_SHARE = 0.6
"""Of the draws of `mostly_low`, those below it."""


def psnr(noise_variance: float) -> float:
    """Convert a noise variance in pixel² to decibels, −10 log10 t, for pixels in [0, 1]."""
    return 10.0 * math.log10(1.0 / noise_variance)


def in_decibels(noise_variance: float) -> str:
    """A noise variance's name in tables: its PSNR to a tenth of a decibel, `30` or `22.5`."""
    return f"{round(psnr(noise_variance), 1):g}"


def variance_at_psnr(decibels: float) -> float:
    """Convert decibels to a noise variance in pixel², t = 10^(−dB/10)."""
    return math.pow(10.0, -decibels / 10.0)


def corrupt(clean: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """Noisy images y = x + √t z, of clean images x and noise z (B, C, H, W), and variances t ≥ 0 (B,)."""
    return clean + noise_variance.sqrt()[:, None, None, None] * noise


def log_uniform(uniform: Tensor, t_min: float, t_max: float) -> Tensor:
    """Map numbers in [0, 1], of any shape, to noise variances log-uniform on [t_min, t_max], in pixel²."""
    if not 0.0 < t_min < t_max:
        raise ValueError(f"noise variances need 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")
    low, high = math.log(t_min), math.log(t_max)
    # exp(log(...)) may leave the range by a rounding error; the promise is kept by clamping.
    return torch.exp(low + (high - low) * uniform).clamp(t_min, t_max)


def mostly_low(uniform: Tensor, t_min: float, t_max: float) -> Tensor:
    """Likewise, of any shape, but three in five are at most `HIDES_LEVELS`, log-uniform there and above it.

    For the likelihood of images, which is asked for at t_min: what is above helps to learn it, and less is
    enough. All are log-uniform if the whole range lies on one side.
    """
    if not t_min < HIDES_LEVELS < t_max:
        return log_uniform(uniform, t_min, t_max)
    low = log_uniform((uniform / LOW_SHARE).clamp(max=1.0), t_min, HIDES_LEVELS)
    high = log_uniform(((uniform - LOW_SHARE) / (1.0 - LOW_SHARE)).clamp(min=0.0), HIDES_LEVELS, t_max)
    return torch.where(uniform < LOW_SHARE, low, high)


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A random generator that depends on nothing but integers, such as (TRAINING, seed, step, stream).

    Equal keys give equal draws on the same kind of device.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def normal_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, type and device of images."""
    return torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)


def fixed_noise(indices: Sequence[int], shape: Sequence[int], seed: int, draw: int = 0) -> Tensor:
    """Standard normal noise (B, C, H, W) of given images, the same in every batch and on every rank.

    The images' positions in their data set, the run's seed, and which of an image's independent `draw`s it is
    decide it. Float32, on the CPU.
    """
    generators = _of_images(indices, seed, draw, 0)
    return torch.stack([torch.randn(*shape, generator=g, dtype=torch.float32) for g in generators])


def fixed_uniform(indices: Sequence[int], shape: Sequence[int], seed: int, draw: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of given images, shape (B, *shape); arguments as in `fixed_noise`."""
    generators = _of_images(indices, seed, draw, 1)
    return torch.stack([torch.rand(*shape, generator=g, dtype=torch.float32) for g in generators])


def fixed_signs(indices: Sequence[int], shape: Sequence[int], seed: int, draw: int = 0) -> Tensor:
    """Independent signs ±1 of given images, shape (B, C, H, W); arguments as in `fixed_noise`."""
    return torch.stack([random_signs(shape, g) for g in _of_images(indices, seed, draw, 2)])


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent signs ±1 of a shape, float32, for Hutchinson's trace; the generator is on the CPU.

    `StationaryGaussian.synthesize` turns them into signs in the basis of the images' spectrum. Any
    orthonormal basis will do; in that one the Hessian is nearly diagonal, and the trace nearly free of noise.
    """
    return 2.0 * torch.randint(0, 2, tuple(shape), generator=generator).float() - 1.0


def _of_images(indices: Sequence[int], seed: int, draw: int, kind: int) -> Iterator[torch.Generator]:
    """A generator for each image, of one draw and kind of numbers."""
    device = torch.device("cpu")
    return (seeded_generator(device, MEASURING, seed, int(index), draw, kind) for index in indices)
