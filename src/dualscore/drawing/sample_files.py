"""What is left of samples: PNG files, floats, figures, a grid."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from dualscore.drawing.inputs import Options
from dualscore.files.aside import write_aside
from dualscore.images import to_pixels
from dualscore.likelihood import bits_per_dim
from dualscore.model import ImageModel
from dualscore.model_files.loading import locate
from dualscore.pictures.grids import to_bytes
from dualscore.sampling import Method, Samples
from dualscore.terminal import final

Figures = dict[str, Any]


def rows_of(paths: Sequence[Path], count: int) -> list[Figures]:
    """A row for each sample: its file, and the image that it is of."""
    return [
        {"file": f"{k * count + j:06d}.png", "of": str(path)}
        for k, path in enumerate(paths)
        for j in range(count)
    ]


def figures_of(model: ImageModel, path: Path, options: Options, found: Samples, began: float) -> Figures:
    """What is told of any samples, drawn since `began` by time.perf_counter."""
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


def write(
    model: ImageModel,
    options: Options,
    found: Samples,
    figures: Figures,
    rows: list[Figures],
    grid: NDArray[np.uint8],
    console: Console,
) -> Figures:
    """Write samples/*.png (8 bits), samples.npz (floats), samples.json and grid.png, and tell of it."""
    out = options.out
    (out / "samples").mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "samples").glob("[0-9]" * 6 + ".png"), out / "samples.json"):
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
    shown = [f"{len(rows):,} samples by {options.method.value}, {figures['seconds']:.1f} s"]
    shown += [f"{name} {figures[key]:{form}}{unit}" for key, name, form, unit in _TOLD if key in figures]
    final(console, ", ".join(shown), soft_wrap=True)
    told = f"written to {out}: grid.png, samples.json, samples.npz, samples/"
    final(console, told, soft_wrap=True)
    return content


_TOLD = (
    ("acceptance", "steps accepted", ".0%", ""),
    ("effective_samples", "worth", ".1f", " independent ones by their weights"),
    ("mean_bits_per_dim", "mean", ".3f", " bits/dim"),
    ("noisy_psnr", "PSNR of the noisy images", ".2f", " dB"),
    ("denoised_psnr", "PSNR of the denoised", ".2f", " dB"),
    ("sample_psnr", "PSNR of the samples", ".2f", " dB"),
)


def _bits(model: ImageModel, pixels: Tensor, batch_size: int) -> Tensor | None:
    """Bits/dim of the samples as written, as `dualscore score` gives them; None where log Z is not known."""
    if model.log_normalizer is None:
        return None
    energy = model.energy(pixels, 0.0, batch_size).double().cpu() + model.log_normalizer
    return bits_per_dim(energy, math.prod(pixels.shape[1:]))
