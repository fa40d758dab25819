"""The commands sample, denoise and inpaint: from a model's file to a folder of samples."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from dualscore.checkpoints import load, locate
from dualscore.errors import SamplingError
from dualscore.grids import arrange, tile, to_bytes
from dualscore.images import to_pixels
from dualscore.likelihood import bits_per_dim
from dualscore.model import ImageModel
from dualscore.noise import corrupt, fixed_noise, psnr, variance_at_psnr
from dualscore.photographs import read_rgb
from dualscore.precision import allow_tf32, find_device
from dualscore.sampling import Method, Samples, effective_samples, inpaint, posterior, sample
from dualscore.scoring.files import Size, decode
from dualscore.shards import write_aside

Figures = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How to draw."""

    out: Path
    """Folder for the results."""
    count: int
    """Samples; of each image, where there are images."""
    method: Method
    steps: int
    """Noise levels."""
    seed: int
    device: str
    batch_size: int
    """Images at once."""
    resize: bool = False
    """Crop and resize images of other sizes."""


def draw_samples(model_path: Path, options: Options, console: Console) -> Figures:
    """Draw images from a model; see `_write` for what it leaves.

    Args:
        model_path: a checkpoint, or a run's folder.
        options: how.
        console: what is told of it.

    Returns:
        The content of samples.json.

    Raises:
        DualscoreError: one line for people.
    """
    model, began = _open(model_path, options), time.perf_counter()
    found = sample(
        model,
        options.count,
        method=options.method,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    figures = _figures(model, model_path, options, found, began)
    if found.log_weight is not None:
        figures["effective_samples"] = effective_samples(found.log_weight)
        figures["log_normalizer"] = float(found.log_weight.logsumexp(0)) - math.log(options.count)
    rows = [{"file": f"{k:04d}.png"} for k in range(options.count)]
    return _write(model, options, found, figures, rows, tile(arrange(found.images)), console)


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
    model = _open(model_path, options)
    t, lowest = variance_at_psnr(decibels), psnr(model.t_max)
    if not lowest <= decibels <= 55.0:
        raise SamplingError(f"--psnr {decibels:g}: must be between {lowest:g} (t_max in training) and 55 dB")
    clean, began = _read(model, paths, options), time.perf_counter()
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
    figures = _figures(model, model_path, options, found, began) | {
        "psnr": decibels,
        "noisy_psnr": _decibels(noisy, clean),
        "denoised_psnr": _decibels(mean, clean),
        "sample_psnr": _decibels(samples, clean[:, None]),
    }
    grid = tile(torch.cat([clean[:, None], noisy[:, None], mean[:, None], samples[:, :8]], dim=1), _DENOISED)
    return _write(model, options, found, figures, _rows(paths, options.count), grid, console)


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
    model = _open(model_path, options)
    clean = _read(model, paths, options)
    known = _known(mask, clean.shape[-2], clean.shape[-1])
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
    figures = _figures(model, model_path, options, found, began) | {
        "missing": int((~known).sum()),
        "sample_psnr": _decibels(
            samples.transpose(0, 1)[:, missing].clamp(0.0, 1.0), clean[missing].expand(options.count, -1)
        ),
    }
    hidden = torch.where(known, clean, 0.5)
    grid = tile(torch.cat([clean[:, None], hidden[:, None], samples[:, :8]], dim=1), _INPAINTED)
    return _write(model, options, found, figures, _rows(paths, options.count), grid, console)


_DENOISED = ("clean", "noisy", "mean", "samples")
_INPAINTED = ("clean", "given", "samples")


def _open(path: Path, options: Options) -> ImageModel:
    allow_tf32(False)
    model = load(locate(path))
    if model.image_shape is None or min(model.image_shape[1:]) == 1:
        raise SamplingError(f"{path}: not a model of images of one size, which this command draws")
    return model.to(find_device(options.device))


def _read(model: ImageModel, paths: Sequence[Path], options: Options) -> Tensor:
    """Images as the model sees them, pixels in [0, 1], shape (B, C, H, W)."""
    assert model.image_shape is not None
    channels, height, width = model.image_shape
    size = Size(height, width, options.resize, ", the model's size; --resize crops and resizes")
    images = []
    for path in paths:
        try:
            images.append(torch.from_numpy(decode(path, size).copy()))
        except ValueError as error:
            raise SamplingError(f"{path}: {error}") from error
    return to_pixels(torch.stack(images), channels)


def _known(mask: Path | None, height: int, width: int) -> Tensor:
    """Which pixels are known, bool, shape (H, W)."""
    known = torch.ones(height, width, dtype=torch.bool)
    if mask is None:
        known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
        return known
    if not mask.is_file():
        raise SamplingError(f"{mask}: no such file")
    try:
        image = read_rgb(mask).convert("L")
    except ValueError as error:
        raise SamplingError(f"{mask}: {error}") from error
    if image.size != (width, height):
        raise SamplingError(
            f"{mask}: is {image.width}×{image.height}; the model's images are {width}×{height}"
        )
    known = torch.from_numpy(np.asarray(image) < 128)
    if bool(known.all()) or not bool(known.any()):
        raise SamplingError(f"{mask}: must be white where pixels are missing, and black elsewhere")
    return known


def _decibels(images: Tensor, clean: Tensor) -> float:
    return psnr(float((images.double() - clean.double()).square().mean().clamp(min=1e-12)))


def _rows(paths: Sequence[Path], count: int) -> list[Figures]:
    """A row for each sample: its file, and the image that it is of."""
    return [
        {"file": f"{k * count + j:04d}.png", "of": str(path)}
        for k, path in enumerate(paths)
        for j in range(count)
    ]


def _figures(model: ImageModel, path: Path, options: Options, found: Samples, began: float) -> Figures:
    figures: Figures = {
        "model": model.provenance,
        "checkpoint": str(locate(path)),
        "method": options.method.value,
        "seed": options.seed,
        "seconds": time.perf_counter() - began,
        "evaluations": found.evaluations,
    }
    if found.acceptance:
        figures["levels"] = options.steps
    if options.method is Method.metropolis:
        figures["acceptance"] = sum(found.acceptance) / len(found.acceptance)
        figures["acceptance_of_levels"] = found.acceptance
    return figures


def _write(
    model: ImageModel,
    options: Options,
    found: Samples,
    figures: Figures,
    rows: list[Figures],
    grid: np.ndarray[Any, np.dtype[np.uint8]],
    console: Console,
) -> Figures:
    """Write samples/*.png (8 bits), samples.npz (floats), samples.json and grid.png, and tell of it."""
    out = options.out
    (out / "samples").mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "samples").glob("[0-9][0-9][0-9][0-9].png"), out / "samples.json"):
        stale.unlink(missing_ok=True)
    written = torch.from_numpy(to_bytes(found.images)).movedim(-1, 1)[:, : found.images.shape[1]]
    bits = _bits(model, to_pixels(written, written.shape[1]), options.batch_size)
    for k, (row, image) in enumerate(zip(rows, to_bytes(found.images), strict=True)):
        Image.fromarray(image if found.images.shape[1] == 3 else image[:, :, 0]).save(
            out / "samples" / str(row["file"])
        )
        row["bits_per_dim"] = None if bits is None else float(bits[k])
        row["log_weight"] = None if found.log_weight is None else float(found.log_weight[k])
    np.savez(out / "samples.npz", images=found.images.cpu().numpy())
    Image.fromarray(grid).save(out / "grid.png")
    if bits is not None:
        figures["mean_bits_per_dim"] = float(bits.mean())
    content = figures | {"samples": rows}
    write_aside(out / "samples.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    shown = [f"{len(rows)} samples by {options.method.value}, {figures['seconds']:.1f} s"]
    shown += [
        f"{name.replace('_', ' ')} {figures[key]:{form}}" for key, name, form in _TOLD if key in figures
    ]
    console.print(", ".join(shown), markup=False, highlight=False, soft_wrap=True)
    told = f"written to {out}: grid.png, samples.json, samples.npz, samples/"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    return content


_TOLD = (
    ("acceptance", "acceptance", ".2f"),
    ("effective_samples", "effective samples by weight", ".1f"),
    ("mean_bits_per_dim", "mean bits/dim", ".3f"),
    ("noisy_psnr", "PSNR noisy", ".2f"),
    ("denoised_psnr", "denoised", ".2f"),
    ("sample_psnr", "samples", ".2f"),
)


def _bits(model: ImageModel, pixels: Tensor, batch_size: int) -> Tensor | None:
    """Bits/dim of the samples as written, as `dualscore score` gives them; None where log Z is not known."""
    if model.log_normalizer is None:
        return None
    energy = model.energy(pixels, 0.0, batch_size).double().cpu() + model.log_normalizer
    return bits_per_dim(energy, math.prod(pixels.shape[1:]))
