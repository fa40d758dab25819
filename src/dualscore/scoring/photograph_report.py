"""What the rows of whole photographs say: means, extremes, the sheet's thumbnails, the lines to print."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import RenderableType

from dualscore.gaussian import LONGEST_SIDE
from dualscore.scoring import score_files
from dualscore.scoring.photograph_scores import PhotographScorer
from dualscore.scoring.row_files import FAILURES, SCORES, Row, read_rows
from dualscore.scoring.score_files import Thumbnail

SCALE = (0.0, 6.0)
"""Bits of a pixel and channel that the heat maps' colours span: the same in all, so that they compare."""
ALONE, SMALL = 448, 128
"""Pixels of a side of the sheet's pictures, where there is one and where there are several."""
SHOWN = 10
"""Of the most probable photographs, and of the least, that table and sheet show."""


def summarize(place: Path, models: Sequence[PhotographScorer]) -> tuple[dict[str, Any], list[Row]]:
    """What all rows say, and the rows at the ends of the order by bits/dim."""
    count = 0
    total = squares = pixels = size = 0.0
    shown: list[tuple[float, int, Row]] = []
    unlike = 0
    for row in read_rows(place / SCORES):
        bits = float(row["bits_per_dim"])
        count += 1
        total += bits
        squares += bits * bits
        size += float(row["bytes"])
        pixels += float(row["width"]) * float(row["height"])
        unlike += "unlike" in row
        shown.append((bits, int(row["number"]), row))
        if len(shown) > 4 * SHOWN:
            shown.sort(key=lambda one: one[:2])
            del shown[SHOWN:-SHOWN]
    shown.sort(key=lambda one: one[:2])
    if len(shown) > 2 * SHOWN:
        del shown[SHOWN:-SHOWN]
    spread = max(0.0, squares - total * total / count) if count else 0.0
    summary = {
        "model": "; ".join(model.model.provenance for model in models),
        "models": {model.name: model.model.provenance for model in models},
        "log_normalizer": 0.0,
        "images": count,
        "failed": sum(1 for _ in read_rows(place / FAILURES)),
        "mean_bits_per_dim": total / count if count else None,
        "stderr": math.sqrt(spread / (count * (count - 1))) if count > 1 else None,
        "bytes": size,
        "pixels": pixels,
        "unlike": unlike,
        "map_scale_bits": list(SCALE),
    }
    return summary, [row for _, _, row in shown]


def thumbnails(place: Path, rows: Sequence[Row]) -> Iterator[Thumbnail]:
    """Each photograph's map, made small; without maps there are none, and gray stands for it."""
    side = ALONE if len(rows) == 1 else SMALL
    for row in rows:
        cell = np.full((2, side, side, 3), 255, np.uint8)
        for which, path in enumerate((Path(row["file"]), place / row["map"] if "map" in row else None)):
            if path is not None and path.is_file():
                with Image.open(path) as file:
                    small = file.convert("RGB")
                small.thumbnail((side, side))
                cell[which, : small.height, : small.width] = np.asarray(small)
        if len(rows) == 1:
            scale = side / max(side, row["width"], row["height"])
            cell = cell[:, : max(1, round(row["height"] * scale)), : max(1, round(row["width"] * scale))]
        yield Thumbnail(row["bits_per_dim"], row["number"], row, cell)


def report(
    summary: dict[str, Any],
    shown: Sequence[Row],
    place: Path,
    written: Sequence[str],
    rate: tuple[int, float],
    device: str,
) -> list[RenderableType]:
    """The lines that the command ends with."""
    count = summary["images"]
    lines: list[RenderableType] = []
    if shown:
        lines.append(score_files.photograph_table(shown, count))
    if count == 1:
        row = shown[0]
        size = f"{row['width']}×{row['height']}"
        lines.append(
            f"{row['bits_per_dim']:.3f} bits/dim: {row['bytes']:,.0f} bytes would hold these {size} pixels"
        )
    elif count:
        error = "" if summary["stderr"] is None else f" ± {summary['stderr']:.3f}"
        lines.append(f"{summary['mean_bits_per_dim']:.3f}{error} bits/dim, the mean of {count:,} images")
    if summary["unlike"]:
        lines.append(
            f"unlike the reference photographs: {summary['unlike']:,}; "
            "more bits, or fewer, than any of them, or gray in a model of colour"
        )
    if summary["failed"]:
        lines.append(f"{summary['failed']:,} left out, see {place / 'failures.csv'}")
    if any("bound" in row for row in shown) and not all("bound" in row for row in shown):
        lines.append(f"no bound of images above {LONGEST_SIDE:,} pixels a side")
    if rate[0] > 1:
        lines.append(f"{rate[0] / rate[1]:.3g} images/s on {device}")
    lines.append(f"written to {place}: {', '.join(written)}")
    return lines
