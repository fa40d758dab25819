"""How figures look, and how they are written."""

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor

from dualscore.files.aside import write_aside

TRUTH, DUAL, SINGLE, DATA, CONSTANT = "#222222", "#1f77b4", "#d95f02", "#c8c8c8", "#7b3294"
MARK = "#e7298a"  # stands out on every colour of a map
SERIES = ("#440154", "#31688e", "#35b779", "#e8a200")  # of curves that are in an order
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # letters stay letters
}


@dataclass(frozen=True)
class Drawn:
    """A figure with its numbers."""

    figure: Figure
    numbers: dict[str, Any]
    rows: Sequence[Sequence[str]] = ()  # of a table
    credit: str = ""  # stands below the figure

    def write(self, out: Path, name: str) -> list[Path]:
        """Write the figure as PDF and PNG, numbers as JSON, a table's rows as CSV; returns the files."""
        if self.credit:
            self.figure.text(0.0, -0.02, self.credit, va="top", fontsize=6, color="gray")
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"{name}.{ending}" for ending in ("pdf", "png", "json", "csv")]
        self.figure.savefig(files[0])
        self.figure.savefig(files[1], dpi=200)
        write_aside(files[2], (json.dumps(self.numbers, indent=1, allow_nan=False) + "\n").encode())
        if not self.rows:
            return files[:3]
        text = io.StringIO(newline="")
        csv.writer(text).writerows(self.rows)
        write_aside(files[3], text.getvalue().encode())
        return files


@contextmanager
def style() -> Iterator[None]:
    """Inside it everything is drawn and written in one style, whatever the user's own matplotlibrc says.

    Figures are made without pyplot, which would start what that or MPLBACKEND names to show them.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def panels(columns: int, legend: bool = False) -> tuple[Figure, list[Axes]]:
    """A row of panels, with room for a legend beside them where it is wanted."""
    figure = Figure(figsize=(2.7 * columns + 1.5 * legend, 2.4), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


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


def table(rows: list[list[str]], title: str, note: str, numbers: dict[str, Any]) -> Drawn:
    """A table, whose first row is its header, as a figure, with a title above it and a note below it."""
    # In characters, of which a bold one of this size is a little under 0.09 inches wide.
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    height = 0.2 * len(rows)
    figure = Figure(figsize=(0.085 * sum(widths), height))
    axis = figure.subplots()
    axis.set_axis_off()
    drawn = axis.table(
        rows[1:],
        colLabels=rows[0],
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
        if column == 0 or not any(line[column][:1].isdigit() or line[column][:1] == "-" for line in rows[1:]):
            cell.get_text().set_horizontalalignment("left")
        cell.PAD = 0.03
    axis.set_title(textwrap.fill(title, sum(widths)), loc="left")
    lines = "\n".join(textwrap.fill(line, int(1.2 * sum(widths))) for line in note.splitlines())
    axis.text(0.0, -0.15 / height, lines, va="top", fontsize=7, transform=axis.transAxes)
    return Drawn(figure, numbers, rows)
