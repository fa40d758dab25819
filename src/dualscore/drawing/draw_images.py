"""`dualscore sample`, `denoise` and `inpaint`: draw images from noise, noisy images or parts of images."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from dualscore.devices import allow_tf32, find_device
from dualscore.errors import SamplingError
from dualscore.files.aside import write_aside
from dualscore.images import to_pixels
from dualscore.likelihood import bits_per_dim
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.noise import corrupt, fixed_noise, psnr, variance_at_psnr
from dualscore.pictures.grids import arrange, tile, to_bytes
from dualscore.pictures.photographs import read_rgb
from dualscore.sampling import Method, Samples, effective_samples, inpaint, posterior, sample
from dualscore.scoring.image_files import Size, decode
from dualscore.scoring.scorer import check_level
from dualscore.terminal import final

Figures = dict[str, Any]
SHOWN = 8
"""Samples of an image in the grid, at most; all of them are written."""
TOLD = (
    ("acceptance", "steps accepted", ".0%", ""),
    ("effective_samples", "worth", ".1f", " independent ones by their weights"),
    ("mean_bits_per_dim", "mean", ".3f", " bits/dim"),
    ("noisy_psnr", "PSNR of the noisy images", ".2f", " dB"),
    ("denoised_psnr", "PSNR of the denoised", ".2f", " dB"),
    ("sample_psnr", "PSNR of the samples", ".2f", " dB"),
)
"""Figures printed at the end: key, label, format, unit."""


@dataclass(frozen=True)
class DrawOptions:
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

    @property
    def sampler(self) -> dict[str, Any]:
        """What all samplers are called with."""
        return {name: getattr(self, name) for name in ("method", "steps", "seed", "batch_size")}


def draw_samples(model_path: Path, options: DrawOptions, console: Console) -> Figures:
    """Draw images from a checkpoint or a run's folder; returns what samples.json holds."""
    model, began = _open_model(model_path, options), time.perf_counter()
    found = sample(model, options.count, **options.sampler)
    figures = _figures(model, model_path, options, found, began)
    if found.log_weight is not None:
        figures["effective_samples"] = effective_samples(found.log_weight)
        figures["log_mean_weight"] = float(found.log_weight.logsumexp(0)) - math.log(options.count)
    rows = [{"file": f"{k:06d}.png"} for k in range(options.count)]
    return _write(model, options, found, figures, rows, tile(arrange(found.images)), console)


def draw_denoised(
    model_path: Path, paths: Sequence[Path], decibels: float, options: DrawOptions, console: Console
) -> Figures:
    """Add noise of an input PSNR to images, and draw clean images that the noisy ones may come from."""
    model = _open_model(model_path, options)
    t = noise_variance(model, decibels)
    clean, began = read_images(model, paths, options), time.perf_counter()
    noise = fixed_noise(range(len(clean)), clean.shape[1:], options.seed)
    noisy = corrupt(clean, noise, torch.full((len(clean),), t))
    mean = model.denoise(noisy, t, options.batch_size).cpu()
    found = posterior(model, noisy.repeat_interleave(options.count, dim=0), t, **options.sampler)
    samples = found.images.cpu().view(len(clean), options.count, *clean.shape[1:])
    figures = _figures(model, model_path, options, found, began) | {
        "psnr": decibels,
        "noisy_psnr": _decibels(noisy, clean),
        "denoised_psnr": _decibels(mean, clean),
        "sample_psnr": _decibels(samples, clean[:, None]),
    }
    columns = torch.cat([clean[:, None], noisy[:, None], mean[:, None], samples[:, :SHOWN]], dim=1)
    grid = tile(columns, ("clean", "noisy", "mean", "samples"))
    return _write(model, options, found, figures, _rows_of(paths, options.count), grid, console)


def draw_inpainted(
    model_path: Path, paths: Sequence[Path], mask: Path | None, options: DrawOptions, console: Console
) -> Figures:
    """Hide the pixels where the mask is white, or the middle without a mask, and draw them anew."""
    model = _open_model(model_path, options)
    clean = read_images(model, paths, options)
    known = known_pixels(mask, clean.shape[-2], clean.shape[-1])
    began = time.perf_counter()
    found = inpaint(model, clean.repeat_interleave(options.count, dim=0), known, **options.sampler)
    samples = found.images.cpu().view(len(clean), options.count, *clean.shape[1:])
    missing = (~known).expand(clean.shape)
    drawn = samples.transpose(0, 1)[:, missing].clamp(0.0, 1.0)
    figures = _figures(model, model_path, options, found, began) | {
        "missing": int((~known).sum()),
        "sample_psnr": _decibels(drawn, clean[missing].expand(options.count, -1)),
    }
    hidden = torch.where(known, clean, 1.0)  # white, as in a mask
    columns = torch.cat([clean[:, None], hidden[:, None], samples[:, :SHOWN]], dim=1)
    grid = tile(columns, ("clean", "given", "samples"))
    return _write(model, options, found, figures, _rows_of(paths, options.count), grid, console)


def _open_model(path: Path, options: DrawOptions) -> ImageModel:
    allow_tf32(False)
    model = load(path)
    check_images(model, path)
    return model.to(find_device(options.device))


def check_images(model: ImageModel, path: Path) -> str:
    """Refuse a model of anything but images of one size; returns their shape, for people."""
    if model.image_shape is None or min(model.image_shape[1:]) == 1:
        raise SamplingError(f"{path}: not a model of images of one size, which this command draws")
    return "×".join(map(str, model.image_shape))


def noise_variance(model: ImageModel, decibels: float) -> float:
    """The noise variance at an input PSNR, in pixel²; SamplingError where a model cannot sample at it."""
    check_level(decibels, model.t_max, highest=55.0, error=SamplingError)
    return variance_at_psnr(decibels)


def read_images(model: ImageModel, paths: Sequence[Path], options: DrawOptions) -> Tensor:
    """Images as the model sees them, pixels in [0, 1], shape (B, C, H, W)."""
    assert model.image_shape is not None
    channels, height, width = model.image_shape
    hint = ", the model's size; --resize crops and resizes"
    images = []
    for path in paths:
        try:
            images.append(torch.from_numpy(decode(path, Size(height, width, options.resize, hint)).copy()))
        except ValueError as error:
            raise SamplingError(f"{path}: {error}") from error
    return to_pixels(torch.stack(images), channels)


def known_pixels(mask: Path | None, height: int, width: int) -> Tensor:
    """Which pixels are known, bool, shape (H, W): where the mask is black, or all but the middle."""
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


def _rows_of(paths: Sequence[Path], count: int) -> list[Figures]:
    """A row for each sample: its file, and the image that it is of."""
    of = [path for path in paths for _ in range(count)]
    return [{"file": f"{k:06d}.png", "of": str(path)} for k, path in enumerate(of)]


def _figures(model: ImageModel, path: Path, options: DrawOptions, found: Samples, began: float) -> Figures:
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
    options: DrawOptions,
    found: Samples,
    figures: Figures,
    rows: list[Figures],
    grid: NDArray[np.uint8],
    console: Console,
) -> Figures:
    """Write samples/*.png (8 bits), samples.npz (floats), samples.json and grid.png, and say so."""
    out, channels = options.out, found.images.shape[1]
    (out / "samples").mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "samples").glob("[0-9]" * 6 + ".png"), out / "samples.json"):
        stale.unlink(missing_ok=True)
    stored = to_bytes(found.images)
    pixels = to_pixels(torch.from_numpy(stored).movedim(-1, 1)[:, :channels], channels)
    bits = _bits(model, pixels, options.batch_size)
    for k, (row, image) in enumerate(zip(rows, stored, strict=True)):
        Image.fromarray(image if channels == 3 else image[:, :, 0]).save(out / "samples" / str(row["file"]))
        row["bits_per_dim"] = None if bits is None else float(bits[k])
        row["log_weight"] = None if found.log_weight is None else float(found.log_weight[k])
    np.savez(out / "samples.npz", images=found.images.cpu().numpy())
    Image.fromarray(grid).save(out / "grid.png")
    if bits is not None:
        figures["mean_bits_per_dim"] = float(bits.mean())
    content = figures | {"samples": rows}
    write_aside(out / "samples.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    shown = [f"{len(rows):,} samples by {options.method.value}, {figures['seconds']:.1f} s"]
    shown += [f"{name} {figures[key]:{form}}{unit}" for key, name, form, unit in TOLD if key in figures]
    final(console, ", ".join(shown), soft_wrap=True)
    final(console, f"written to {out}: grid.png, samples.json, samples.npz, samples/", soft_wrap=True)
    return content


def _bits(model: ImageModel, pixels: Tensor, batch_size: int) -> Tensor | None:
    """Bits/dim of the samples as written, as `dualscore score` gives them; None where log Z is not known."""
    if model.log_normalizer is None:
        return None
    energy = model.energy(pixels, 0.0, batch_size).double().cpu() + model.log_normalizer
    return bits_per_dim(energy, math.prod(pixels.shape[1:]))
