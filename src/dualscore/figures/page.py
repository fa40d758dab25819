"""How figures look, and how they are written."""

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor

from dualscore.files.aside import write_aside

TRUTH, DUAL, SINGLE, DATA, CONSTANT = "#222222", "#1f77b4", "#d95f02", "#c8c8c8", "#7b3294"
MARK = "#e7298a"
"""Stands out on every colour of a map."""
SERIES = ("#440154", "#31688e", "#35b779", "#e8a200")
"""Colours of curves that are in an order."""

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # letters stay letters
}


def style() -> AbstractContextManager[None]:
    """Inside it everything is drawn and written in one style."""
    return plt.rc_context(_STYLE)


def panels(columns: int, legend: bool = False) -> tuple[Figure, list[Axes]]:
    """A row of panels, with room for a legend beside them where it is wanted."""
    figure, axes = plt.subplots(
        1, columns, figsize=(2.7 * columns + 1.5 * legend, 2.4), layout="constrained", squeeze=False
    )
    return figure, list(axes[0])


def with_strip(strip: bool) -> tuple[Figure, Axes]:
    """A wide panel, with room for a strip of images below where it is wanted."""
    figure = plt.figure(figsize=(7.2, 3.4 if strip else 2.6), layout="constrained")
    if not strip:
        return figure, figure.subplots()
    figure.subfigures(2, 1, height_ratios=(2.4, 1.0))
    return figure, figure.subfigs[0].subplots()


def draw_strip(figure: Figure, images: Tensor, labels: Sequence[str]) -> None:
    """Images (n, C, H, W) in a row below the panel of `with_strip`, each with a label."""
    for axis, image, label in zip(figure.subfigs[1].subplots(1, len(images)), images, labels, strict=True):
        show(axis, image)
        axis.set_xlabel(label, fontsize=7)


def inset(axis: Axes, image: Tensor, place: int = 0, colour: str = "white") -> None:
    """A small image (C, H, W) in a panel, at the lower left or `place` steps to the right of it."""
    small = axis.inset_axes((0.02 + 0.15 * place, 0.03, 0.14, 0.14 * 2.7 / 2.4))
    show(small, image)
    for spine in small.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.5)


def show(axis: Axes, image: Tensor) -> None:
    """An image (C, H, W) without scales around it; pixels outside [0, 1] are clipped."""
    pixels = image.detach().float().cpu().clamp(0.0, 1.0).permute(1, 2, 0).numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0.0, vmax=1.0)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str, note: str = "") -> Figure:
    """A table as a figure, with a title above it and a note below it."""
    texts = [header, *rows]
    # In characters, of which a bold one of this size is a little under 0.09 inches wide.
    widths = [max(len(row[column]) for row in texts) + 2 for column in range(len(header))]
    height = 0.2 * len(texts)
    figure, axis = plt.subplots(figsize=(0.085 * sum(widths), height))
    axis.set_axis_off()
    drawn = axis.table(
        [list(row) for row in rows],
        colLabels=list(header),
        colWidths=[width / sum(widths) for width in widths],
        bbox=Bbox.unit(),
        cellLoc="right",
        colLoc="right",
        edges="horizontal",
    )
    drawn.auto_set_font_size(False)
    for (row, column), cell in drawn.get_celld().items():
        cell.set(linewidth=0.8 if row == 0 else 0.2)
        cell.get_text().set_fontweight("bold" if row == 0 else "normal")
        if column == 0 or not any(line[column][:1].isdigit() or line[column][:1] == "-" for line in rows):
            cell.get_text().set_horizontalalignment("left")
        cell.PAD = 0.03
    axis.set_title(textwrap.fill(title, sum(widths)), loc="left")
    lines = "\n".join(textwrap.fill(line, int(1.2 * sum(widths))) for line in note.splitlines())
    axis.text(0.0, -0.15 / height, lines, va="top", fontsize=7, transform=axis.transAxes)
    return figure


def write(
    figure: Figure,
    numbers: dict[str, Any],
    out: Path,
    name: str,
    rows: Sequence[Sequence[str]] | None = None,
    credit: str = "",
) -> list[Path]:
    """Write a figure as PDF and PNG, its numbers as JSON, a table's rows as CSV; returns the files."""
    if credit:
        figure.text(0.0, -0.02, credit, va="top", fontsize=6, color="gray")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.{ending}" for ending in ("pdf", "png", "json")]
    figure.savefig(files[0])
    figure.savefig(files[1], dpi=200)
    plt.close(figure)
    write_aside(files[2], (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode())
    if rows is not None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        files.append(out / f"{name}.csv")
        write_aside(files[-1], text.getvalue().encode())
    return files
