"""`dualscore sample`, `denoise` and `inpaint`: draw images from noise, noisy images or parts of images."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dualscore.devices import to_measure
from dualscore.errors import SamplingError
from dualscore.files.plain_text import printable
from dualscore.images import dequantize, to_pixels
from dualscore.likelihood.noise_level import EVALUATIONS, NoiseLevel
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.noise import corrupt, fixed_noise, fixed_uniform, psnr, variance_at_psnr
from dualscore.pictures.grids import arrange, tile, to_bytes
from dualscore.pictures.photographs import read_rgb
from dualscore.sampling import Method, Samples, effective_samples, inpaint, posterior, sample
from dualscore.scoring.image_files import Size, decode, first_size
from dualscore.scoring.score_files import Outcome, write_json
from dualscore.scoring.scorer import check_level

SHOWN = 8
"""Samples of an image in the grid, at most; all of them are written."""
TOLD = (
    ("acceptance", "steps accepted", ".0%", ""),
    ("effective_samples", "worth", ".1f", " independent ones by their weights"),
    ("mean_bits_per_dim", "mean", ".3f", " bits/dim"),
    ("noise_psnr", "noise found", ".2f", " dB on average"),
    ("noisy_psnr", "PSNR of the noisy images", ".2f", " dB"),
    ("denoised_psnr", "PSNR of the denoised", ".2f", " dB"),
    ("sample_psnr", "PSNR of the samples", ".2f", " dB"),
)
"""Figures printed at the end: key, label, format, unit."""


@dataclass(frozen=True)
class DrawOptions:
    """How to draw: what the three commands share."""

    out: Path
    count: int  # samples; of each image, where there are images
    method: Method
    steps: int  # noise levels
    seed: int
    device: str
    batch_size: int
    resize: bool = False  # crop and resize images of other sizes

    @property
    def sampler(self) -> dict[str, Any]:
        """What all samplers are called with."""
        return {name: getattr(self, name) for name in ("method", "steps", "seed", "batch_size")}


def draw_samples(model_path: Path, options: DrawOptions) -> Outcome:
    """Draw images from a checkpoint or a run's folder."""
    drawing = _Drawing(model_path, options)
    found = sample(drawing.model, options.count, **options.sampler)
    figures = {}
    if found.log_weight is not None:
        figures["effective_samples"] = effective_samples(found.log_weight)
        figures["log_mean_weight"] = float(found.log_weight.logsumexp(0)) - math.log(options.count)
    return drawing.write(found, figures, tile(arrange(found.images)))


def draw_denoised(
    model_path: Path, paths: Sequence[Path], decibels: float | None, options: DrawOptions
) -> Outcome:
    """Add noise of an input PSNR to images, and draw clean images that the noisy ones may come from.

    Without a PSNR they are noisy already: by how much, the energy finds of each.
    """
    drawing = _Drawing(model_path, options, paths)
    if decibels is None:
        return _draw_as_noisy(drawing)
    model, clean = drawing.model, drawing.clean
    t = noise_variance(model, decibels)
    noise = fixed_noise(range(len(clean)), clean.shape[1:], options.seed)
    noisy = corrupt(clean, noise, torch.full((len(clean),), t))
    mean = model.denoise(noisy, t, options.batch_size).cpu()
    figures = {
        "psnr": decibels,
        "noisy_psnr": _decibels(noisy, clean),
        "denoised_psnr": _decibels(mean, clean),
    }
    if options.count == 0:  # the mean alone, at one evaluation
        columns = torch.stack([clean, noisy, mean], dim=1)
        shown = tile(columns, ("clean", "noisy", "mean"))
        return drawing.write(Samples(mean, None, [], 1), figures, shown)
    found = posterior(model, noisy.repeat_interleave(options.count, dim=0), t, **options.sampler)
    samples = found.images.cpu().view(len(clean), options.count, *clean.shape[1:])
    figures["sample_psnr"] = _decibels(samples, clean[:, None])
    columns = torch.cat([clean[:, None], noisy[:, None], mean[:, None], samples[:, :SHOWN]], dim=1)
    return drawing.write(found, figures, tile(columns, ("clean", "noisy", "mean", "samples")))


def _draw_as_noisy(drawing: "_Drawing") -> Outcome:
    """Draw what images as they are, noisy by unknown amounts, may have been."""
    model, options, given = drawing.model, drawing.options, drawing.clean
    # Spread over their grey levels: at those themselves a density that knows them is infinite.
    noisy = dequantize(given, fixed_uniform(range(len(given)), given.shape[1:], options.seed))
    found = model.noise_level(noisy, options.batch_size)
    known = found.variance.isfinite().cpu()
    without = "no noise was found in it, from 60 to 0 dB; --psnr 20 adds some"
    if not bool(known.any()):
        raise SamplingError(f"{drawing.paths[0]}: {without}")
    paths = [*zip(drawing.paths, known.tolist(), strict=True)]
    drawing.left_out += [f"left out: {path}: {without}" for path, noise in paths if not noise]
    drawing.paths = [path for path, noise in paths if noise]
    given, noisy = given[known], noisy[known]
    found = NoiseLevel(*(part.cpu()[known] for part in found))
    levels = [*zip(drawing.paths, found.variance.tolist(), strict=True)]
    mean = model.denoise(noisy, found.variance, options.batch_size).cpu()
    figures = {
        "noise_levels": [
            {"of": str(path), "psnr": psnr(t), "psnr_stderr": error}
            for (path, t), error in zip(levels, found.psnr_stderr.tolist(), strict=True)
        ],
        "noise_psnr": float(found.psnr.mean()),
    }
    if options.count == 0:
        shown = tile(torch.stack([given, mean], dim=1), ("noisy", "mean"))
        return drawing.write(Samples(mean, None, [], 1 + EVALUATIONS), figures, shown)
    drawn = [
        posterior(model, image.expand(options.count, -1, -1, -1), t, **options.sampler)
        for image, (_, t) in zip(noisy, levels, strict=True)
    ]
    weights = [one.log_weight for one in drawn if one.log_weight is not None]
    together = drawn[0]._replace(
        images=torch.cat([one.images for one in drawn]),
        log_weight=torch.cat(weights) if weights else None,
        evaluations=drawn[0].evaluations + EVALUATIONS,
    )
    samples = together.images.cpu().view(len(given), options.count, *given.shape[1:])
    columns = torch.cat([given[:, None], mean[:, None], samples[:, :SHOWN]], dim=1)
    return drawing.write(together, figures, tile(columns, ("noisy", "mean", "samples")))


def draw_inpainted(
    model_path: Path, paths: Sequence[Path], mask: Path | None, options: DrawOptions
) -> Outcome:
    """Hide the pixels where the mask is white, or the middle without a mask, and draw them anew."""
    drawing = _Drawing(model_path, options, paths)
    clean = drawing.clean
    known = known_pixels(mask, clean.shape[-2], clean.shape[-1])
    found = inpaint(drawing.model, clean.repeat_interleave(options.count, dim=0), known, **options.sampler)
    samples = found.images.cpu().view(len(clean), options.count, *clean.shape[1:])
    missing = (~known).expand(clean.shape)
    drawn = samples.transpose(0, 1)[:, missing].clamp(0.0, 1.0)
    figures = {
        "missing": int((~known).sum()),
        "sample_psnr": _decibels(drawn, clean[missing].expand(options.count, -1)),
    }
    hidden = torch.where(known, clean, 1.0)  # white, as in a mask
    columns = torch.cat([clean[:, None], hidden[:, None], samples[:, :SHOWN]], dim=1)
    return drawing.write(found, figures, tile(columns, ("clean", "given", "samples")))


def check_images(model: ImageModel, path: Path) -> str:
    """Refuse a model of anything but images of one size; returns their shape, for people."""
    if model.image_shape is None or min(model.image_shape[1:]) == 1:
        raise SamplingError(f"{path}: not a model of images of one size, which this command draws")
    return "×".join(map(str, model.image_shape))


def sized(model: ImageModel, paths: Sequence[Path], options: DrawOptions) -> ImageModel:
    """A model of any size for that of the first image, where there is one and it is not resized."""
    if not paths or options.resize or not model.any_size:
        return model
    return model.at(*first_size(paths, options.out))


def noise_variance(model: ImageModel, decibels: float) -> float:
    """The noise variance at an input PSNR, in pixel²; SamplingError where a model cannot sample at it."""
    check_level(decibels, model.t_max, highest=55.0, error=SamplingError)
    return variance_at_psnr(decibels)


class Given(NamedTuple):
    """Images as the model sees them, pixels in [0, 1], shape (B, C, H, W), and the files that they are of."""

    clean: Tensor
    paths: list[Path]
    left_out: list[str]  # a line for each file that cannot be used


def read_images(model: ImageModel, paths: Sequence[Path], options: DrawOptions) -> Given:
    """Read images; SamplingError if none can be used."""
    assert model.image_shape is not None
    size = Size(*model.image_shape, options.resize, ", the model's size; --resize crops and resizes")
    images, used, problems = [], list[Path](), list[str]()
    for path in paths:
        try:
            images.append(torch.from_numpy(decode(path, size).copy()))
            used.append(path)
        except ValueError as error:
            problems.append(f"{printable(str(path))}: {error}")
    if not images:
        raise SamplingError(problems[0])
    return Given(to_pixels(torch.stack(images), size.channels), used, [f"left out: {p}" for p in problems])


def known_pixels(mask: Path | None, height: int, width: int) -> Tensor:
    """Which pixels are known, bool, shape (H, W): where the mask is black, or all but the middle."""
    if mask is None:
        known = torch.ones(height, width, dtype=torch.bool)
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


class _Drawing:
    """An opened model and the images it is given, for which it draws samples into a folder."""

    def __init__(self, path: Path, options: DrawOptions, paths: Sequence[Path] = ()) -> None:
        model = load(path)
        check_images(model, path)
        self.path, self.options = path, options
        self.model = to_measure(sized(model, paths, options), options.device)
        given = read_images(self.model, paths, options) if paths else Given(torch.empty(0), [], [])
        self.clean, self.paths, self.left_out = given
        self.began = time.perf_counter()

    def write(self, found: Samples, figures: dict[str, Any], grid: NDArray[np.uint8]) -> Outcome:
        """Write samples/*.png (8 bits), samples.npz (floats), samples.json and grid.png."""
        out, method = self.options.out, self.options.method
        how, what = (method.value, "samples") if self.options.count else ("the mean", "images denoised")
        summary: dict[str, Any] = {
            "model": self.model.provenance,
            "checkpoint": str(locate(self.path)),
            "method": how,
            "seed": self.options.seed,
            "seconds": time.perf_counter() - self.began,
            "evaluations": found.evaluations,
        }
        if found.acceptance:
            summary["levels"] = self.options.steps
        if found.acceptance and method is Method.metropolis:
            summary["acceptance"] = sum(found.acceptance) / len(found.acceptance)
            summary["acceptance_of_levels"] = found.acceptance
        summary |= figures
        (out / "samples").mkdir(parents=True, exist_ok=True)
        for stale in (*(out / "samples").glob("[0-9]" * 6 + ".png"), out / "samples.json"):
            stale.unlink(missing_ok=True)
        stored, bits = to_bytes(found.images), self._bits(found.images)
        rows = []
        for k, image in enumerate(stored):
            row: dict[str, Any] = {"file": f"{k:06d}.png"}
            if self.paths:
                row["of"] = str(self.paths[k // max(1, self.options.count)])
            row["bits_per_dim"] = None if bits is None else float(bits[k])
            row["log_weight"] = None if found.log_weight is None else float(found.log_weight[k])
            rows.append(row)
            gray = found.images.shape[1] == 1
            Image.fromarray(image[:, :, 0] if gray else image).save(out / "samples" / row["file"])
        np.savez(out / "samples.npz", images=found.images.cpu().numpy())
        Image.fromarray(grid).save(out / "grid.png")
        if bits is not None:
            summary["mean_bits_per_dim"] = float(bits.mean())
        write_json(out / "samples.json", summary, "samples", rows)
        shown = [f"{len(rows):,} {what} by {how}, {summary['seconds']:.1f} s"]
        shown += [f"{name} {summary[key]:{form}}{unit}" for key, name, form, unit in TOLD if key in summary]
        written = f"written to {out}: grid.png, samples.json, samples.npz, samples/"
        return Outcome(summary, [*self.left_out, ", ".join(shown), written])

    def _bits(self, images: Tensor) -> Tensor | None:
        """Bits/dim of samples as stored in 8 bits, as `dualscore score` gives them; None without log Z."""
        if self.model.log_normalizer is None:
            return None
        channels = images.shape[1]
        pixels = to_pixels(torch.from_numpy(to_bytes(images)).movedim(-1, 1)[:, :channels], channels)
        energy = self.model.energy(pixels, 0.0, self.options.batch_size).double().cpu()
        return self.model.in_bits_per_dim(energy + self.model.log_normalizer, math.prod(pixels.shape[1:]))
