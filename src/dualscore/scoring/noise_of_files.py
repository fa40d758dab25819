"""`dualscore noise`: how noisy photographs are."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from dualscore.devices import to_measure
from dualscore.errors import ScoreError
from dualscore.files.aside import write_aside
from dualscore.images import dequantize, to_pixels
from dualscore.likelihood.noise_level import NoiseLevel, noise_level, noise_range
from dualscore.model import ImageModel
from dualscore.noise import fixed_uniform
from dualscore.scoring.image_files import Problems, check_given
from dualscore.scoring.photograph_scores import as_batch, is_gray, named_or_boxed
from dualscore.scoring.picture_stream import pictures
from dualscore.scoring.score_files import Outcome

SEED = 0
WRITTEN = "noise_levels.json"
SHOWN = 20
"""Images whose levels are printed."""


def noise_of_files(
    path: Path | None,
    given: Sequence[Path],
    out: Path,
    console: Console,
    device: str,
    model: ImageModel | None = None,
) -> Outcome:
    """The noise level of every picture, by the model at a path or the boxed ones."""
    check_given(given, out)
    named = named_or_boxed(path, model)
    models = [to_measure(loaded, device) for _, loaded in named]
    problems, others = Problems(), Counter[str]()
    rows = []
    for picture in pictures(given, out, others=others):
        if picture.pixels is None:
            problems.add([(picture.name, picture.problem)])
            continue
        chosen = models[-1 if is_gray(picture.pixels) else 0]
        try:
            level = level_of(chosen, as_batch([picture.pixels], chosen.like.device))
        except ValueError as error:
            problems.add([(picture.name, str(error))])
            continue
        rows.append({"file": picture.name, **_row(level)})
    problems.others = others
    problems.tell(console)
    if not rows:
        raise ScoreError(f"no image could be looked at: {problems.reason(given)}")
    out.mkdir(parents=True, exist_ok=True)
    found = {"models": [name for name, _ in named], "images": rows}
    write_aside(out / WRITTEN, (json.dumps(found, indent=1) + "\n").encode())
    lines = [_line(row) for row in rows[:SHOWN]]
    lines += [f"… {len(rows) - SHOWN:,} more"] if len(rows) > SHOWN else []
    return Outcome({"images": rows}, [*lines, f"written to {out}: {WRITTEN}"])


def level_of(model: ImageModel, stored: Tensor) -> NoiseLevel:
    """The noise level of one photograph, uint8, (1, 3, H, W).

    A model of one size finds the level at which the tiles of its size are most probable together.
    """
    if model.image_shape is None:
        raise ScoreError("a model that was saved without its images' size cannot be asked for noise levels")
    channels, height, width = model.image_shape
    pixels = to_pixels(stored, channels)
    # Spread over their grey levels: at those themselves a density that knows them is infinite.
    uniform = fixed_uniform([0], tuple(pixels.shape[1:]), SEED).to(pixels)
    pixels = dequantize(pixels, uniform).to(model.like)
    if model.any_size:
        return model.noise_level(pixels)
    if pixels.shape[-2] < height or pixels.shape[-1] < width:
        raise ValueError(f"is smaller than {width}×{height}, of which the model's images are")
    tiles = pixels.unfold(2, height, height).unfold(3, width, width)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, height, width)

    def together(_: Tensor, t: Tensor) -> Tensor:
        return model.energy(tiles, float(t)).sum(dim=0, keepdim=True)

    return noise_level(together, pixels, noise_range(model.t_min, model.t_max))


def _row(level: NoiseLevel) -> dict[str, Any]:
    figures = {
        "psnr": float(level.psnr),
        "psnr_stderr": float(level.psnr_stderr),
        "grey_levels": 255.0 * math.sqrt(level.variance),
        "variance": float(level.variance),
    }
    return {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}


def _line(row: dict[str, Any]) -> str:
    if row["psnr"] is None:
        return f"{row['file']}: no noise found from 60 to 0 dB"
    return (
        f"{row['file']}: {row['psnr']:.2f} ± {row['psnr_stderr']:.2f} dB, "
        f"a standard deviation of {row['grey_levels']:.2f} grey levels"
    )
