"""What a scoring leaves: rows in CSV and JSON, a table, and a sheet of the most and least probable images."""

import csv
import heapq
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from rich.text import Text

from dualscore.files.plain_text import printable
from dualscore.pictures.grids import COLOURS

THUMBNAIL, COLUMNS_SHOWN, MARGIN, LINE = 96, 6, 10, 17
"""Pixels of a thumbnail's side at least, cells a row, pixels between them, and of a line of text."""
TEXT, LETTER, BAR = 13, 7, 160
"""Pixels of the letters' height, of their mean width, and of the colour bar."""


@dataclass(frozen=True)
class Row:
    """An image's scores; None is an empty cell."""

    file: str
    bits_per_dim: float
    db_per_dim: float
    """Log p, as the paper plots it."""
    percentile: float | None
    """Percentage of the validation images that are less probable."""
    effective_dimension: float | None
    effective_dimension_stderr: float | None
    map: str | None
    """The heat map's file, relative to the rows'."""


COLUMNS = [column.name for column in fields(Row)]


def open_csv(path: Path, columns: Sequence[str]) -> IO[str]:
    """Open a CSV file anew, with its header written; names that are not Unicode go in as they are."""
    file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    csv.writer(file).writerow(columns)
    return file


def append(file: IO[str], rows: Sequence[Sequence[Any]]) -> None:
    """Append rows; all of them are in the file when this returns."""
    csv.writer(file).writerows(rows)
    file.flush()


def values(row: Row) -> list[Any]:
    """A row's cells, numbers with the digits that single precision has."""
    return [f"{cell:.7g}" if isinstance(cell, float) else cell for cell in vars(row).values()]


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        cells = csv.reader(file)
        names = next(cells)
        for row in cells:
            yield {
                name: None if cell == "" else cell if name in ("file", "map") else float(cell)
                for name, cell in zip(names, row, strict=True)
            }


def write_json(path: Path, summary: dict[str, Any], rows: Path) -> None:
    """Write the summary and, as `scores`, the rows of a CSV file, one at a time; whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=1, allow_nan=False).removesuffix("\n}") + ',\n "scores": [')
        encode = json.JSONEncoder(allow_nan=False).encode  # made once, not for each row
        for number, row in enumerate(_read_rows(rows)):
            file.write(("," if number else "") + "\n  " + encode(row))
        file.write("\n ]\n}\n")
    os.replace(aside, path)


def score_table(rows: Sequence[Row], seen: int) -> Table:
    """A table for the terminal, the most probable first; a line marks the middle if more images were seen."""
    table = Table("file", "bits/dim", "dB/dim", "percentile", "d_eff")
    for column in table.columns[1:]:
        column.justify = "right"
    for number, row in enumerate(rows):
        if seen > len(rows) and number == len(rows) // 2:
            table.add_row(f"… {seen - len(rows):,} more …")
        percentile = "" if row.percentile is None else f"{row.percentile:.1f}"
        dimension = ""
        if row.effective_dimension is not None:
            dimension = f"{row.effective_dimension:,.1f} ± {row.effective_dimension_stderr:.1f}"
        name = Text(printable(row.file), overflow="ellipsis", no_wrap=True)
        table.add_row(name, f"{row.bits_per_dim:.3f}", f"{row.db_per_dim:.2f}", percentile, dimension)
    return table


@dataclass(frozen=True)
class Thumbnail:
    """An image on the sheet; both pictures have shape (H, W, 3)."""

    row: Row
    image: NDArray[np.uint8]
    heat: NDArray[np.uint8]


@dataclass
class Extremes:
    """Keeps the k images of the fewest and the k of the most bits/dim, however many come."""

    k: int
    seen: int = field(default=0, init=False)
    _most: list[tuple[float, int, Thumbnail]] = field(default_factory=list, init=False)
    _least: list[tuple[float, int, Thumbnail]] = field(default_factory=list, init=False)

    def add(self, bits: float, make: Callable[[], Thumbnail]) -> None:
        """Take an image of finite bits/dim; `make` is called only if it is kept."""
        self.seen += 1
        sides = [(self._least, bits), (self._most, -bits)]
        wanted = [(heap, key) for heap, key in sides if len(heap) < self.k or key > heap[0][0]]
        if wanted:
            thumbnail = make()
            for heap, key in wanted:
                push = heapq.heappush if len(heap) < self.k else heapq.heapreplace
                push(heap, (key, -self.seen, thumbnail))

    def sorted(self) -> list[Thumbnail]:
        """Those kept, the most probable first, each once; equals in the order they came in."""
        kept = {-number: (bits, -number, item) for bits, number, item in self._least}
        kept |= {-number: (-key, -number, item) for key, number, item in self._most}
        return [item for _, _, item in sorted(kept.values(), key=lambda entry: entry[:2])]


def heading(shown: int, seen: int) -> str:
    """The line above the images."""
    which = f"the {shown} images" if seen == shown else f"the extremes of {seen:,} images"
    order = "the image" if seen == 1 else f"{which}, the most probable first"
    return f"{order}: bits/dim, file"


def draw_sheet(shown: Sequence[Thumbnail], seen: int, scale: tuple[float, float]) -> Image.Image:
    """Draw images beside their heat maps, whose colours span `scale` in bits a dimension."""
    height, width = shown[0].image.shape[:2]
    factor = max(1, THUMBNAIL // max(height, width))
    large = (width * factor, height * factor)
    cell = (2 * large[0] + 2, large[1] + 2 * LINE)
    columns = min(COLUMNS_SHOWN, len(shown))
    rows = -(-len(shown) // columns)
    top = 2 * MARGIN + 3 * LINE
    size = (max(columns * (cell[0] + MARGIN) + MARGIN, 560), rows * (cell[1] + MARGIN) + top)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(TEXT)
    pen.text((MARGIN, MARGIN), heading(len(shown), seen), fill="black")
    below = "right of each: where its bits are, per pixel and channel"
    pen.text((MARGIN, MARGIN + LINE), below, fill="black")
    _draw_colour_bar(sheet, pen, scale)
    for number, thumbnail in enumerate(shown):
        x = MARGIN + number % columns * (cell[0] + MARGIN)
        y = top + number // columns * (cell[1] + MARGIN)
        for column, pixels in enumerate((thumbnail.image, thumbnail.heat)):
            picture = Image.fromarray(pixels).resize(large, Image.Resampling.NEAREST)
            sheet.paste(picture, (x + column * (large[0] + 2), y))
        name = printable(thumbnail.row.file).rpartition("/")[2]
        most = max(8, cell[0] // LETTER)
        name = name if len(name) <= most else f"…{name[1 - most :]}"
        pen.text((x, y + large[1]), f"{thumbnail.row.bits_per_dim:.3f}", fill="black")
        pen.text((x, y + large[1] + LINE), name, fill="black")
    return sheet


def _draw_colour_bar(sheet: Image.Image, pen: ImageDraw.ImageDraw, scale: tuple[float, float]) -> None:
    y = MARGIN + 2 * LINE
    low = f"{scale[0]:.2f}"
    x = MARGIN + int(pen.textlength(low)) + 6
    bar = np.broadcast_to(COLOURS[np.linspace(0, 255, BAR).round().astype(int)], (LINE - 6, BAR, 3))
    pen.text((MARGIN, y), low, fill="black")
    sheet.paste(Image.fromarray(bar), (x, y + 3))
    pen.text((x + BAR + 6, y), f"{scale[1]:.2f} bits", fill="black")
