"""Draws images from a model: from nothing, from noisy images, from parts of images."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dualscore.drawing.inputs import Options, known_pixels, noise_variance, open_model, read_images
from dualscore.drawing.sample_files import Figures, figures_of, rows_of, write
from dualscore.noise import corrupt, fixed_noise, psnr
from dualscore.pictures.grids import arrange, tile
from dualscore.sampling import effective_samples, inpaint, posterior, sample

_DENOISED = ("clean", "noisy", "mean", "samples")
_INPAINTED = ("clean", "given", "samples")
_SHOWN = 8
"""Samples of an image in the grid, at most; all of them are written."""


def draw_samples(model_path: Path, options: Options, console: Console) -> Figures:
    """Draw images from a model; see `write` for what it leaves.

    Args:
        model_path: a checkpoint, or a run's folder.
        options: how.
        console: what is told of it.

    Returns:
        The content of samples.json.

    Raises:
        DualscoreError: one line for people.
    """
    model, began = open_model(model_path, options), time.perf_counter()
    found = sample(
        model,
        options.count,
        method=options.method,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    figures = figures_of(model, model_path, options, found, began)
    if found.log_weight is not None:
        figures["effective_samples"] = effective_samples(found.log_weight)
        figures["log_mean_weight"] = float(found.log_weight.logsumexp(0)) - math.log(options.count)
    rows = [{"file": f"{k:06d}.png"} for k in range(options.count)]
    return write(model, options, found, figures, rows, tile(arrange(found.images)), console)


def draw_denoised(
    model_path: Path, paths: Sequence[Path], decibels: float, options: Options, console: Console
) -> Figures:
    """Add noise to images, and draw clean images that the noisy ones may come from.

    Args:
        model_path: a checkpoint, or a run's folder.
        paths: image files.
        decibels: the noise level as input PSNR.
        options: how.
        console: what is told of it.

    Returns:
        The content of samples.json.

    Raises:
        DualscoreError: one line for people.
    """
    model = open_model(model_path, options)
    t = noise_variance(model, decibels)
    clean, began = read_images(model, paths, options), time.perf_counter()
    noise = fixed_noise(range(len(clean)), clean.shape[1:], options.seed)
    noisy = corrupt(clean, noise, torch.full((len(clean),), t))
    mean = model.denoise(noisy, t, options.batch_size).cpu()
    found = posterior(
        model,
        noisy.repeat_interleave(options.count, dim=0),
        t,
        method=options.method,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    samples = found.images.cpu().view(len(clean), options.count, *clean.shape[1:])
    figures = figures_of(model, model_path, options, found, began) | {
        "psnr": decibels,
        "noisy_psnr": _decibels(noisy, clean),
        "denoised_psnr": _decibels(mean, clean),
        "sample_psnr": _decibels(samples, clean[:, None]),
    }
    grid = tile(
        torch.cat([clean[:, None], noisy[:, None], mean[:, None], samples[:, :_SHOWN]], dim=1), _DENOISED
    )
    return write(model, options, found, figures, rows_of(paths, options.count), grid, console)


def draw_inpainted(
    model_path: Path, paths: Sequence[Path], mask: Path | None, options: Options, console: Console
) -> Figures:
    """Hide pixels of images, and draw them anew given the others.

    Args:
        model_path: a checkpoint, or a run's folder.
        paths: image files.
        mask: an image that is white where pixels are missing; None hides the middle, half as wide and high.
        options: how.
        console: what is told of it.

    Returns:
        The content of samples.json.

    Raises:
        DualscoreError: one line for people.
    """
    model = open_model(model_path, options)
    clean = read_images(model, paths, options)
    known = known_pixels(mask, clean.shape[-2], clean.shape[-1])
    began = time.perf_counter()
    found = inpaint(
        model,
        clean.repeat_interleave(options.count, dim=0),
        known,
        method=options.method,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    samples = found.images.cpu().view(len(clean), options.count, *clean.shape[1:])
    missing = (~known).expand(clean.shape)
    figures = figures_of(model, model_path, options, found, began) | {
        "missing": int((~known).sum()),
        "sample_psnr": _decibels(
            samples.transpose(0, 1)[:, missing].clamp(0.0, 1.0), clean[missing].expand(options.count, -1)
        ),
    }
    hidden = torch.where(known, clean, 1.0)  # white, as in a mask
    grid = tile(torch.cat([clean[:, None], hidden[:, None], samples[:, :_SHOWN]], dim=1), _INPAINTED)
    return write(model, options, found, figures, rows_of(paths, options.count), grid, console)


def _decibels(images: Tensor, clean: Tensor) -> float:
    return psnr(float((images.double() - clean.double()).square().mean().clamp(min=1e-12)))
