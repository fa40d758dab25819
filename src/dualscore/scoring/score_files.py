"""What commands leave that take images: rows in CSV and JSON, a table, a sheet of pictures, a report."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dualscore.files.plain_text import printable
from dualscore.pictures.grids import arrange, tile

Row = dict[str, Any]
COLUMNS = (
    "file", "bits_per_dim", "db_per_dim", "percentile", "effective_dimension", "effective_dimension_stderr",
    "map",
)  # fmt: skip
"""Of scores.csv; what is not known is left empty."""
THUMBNAIL, NAME = 96, 30
"""Pixels of a thumbnail's side at least, and the most letters of a file's name below it."""


class Outcome(NamedTuple):
    """What a command found: what its JSON begins with, and what to print, a result even if hushed."""

    summary: dict[str, Any]
    report: list[RenderableType]


class Thumbnail(NamedTuple):
    """An image on the sheet; they sort by bits/dim, then as they came."""

    bits: float
    number: int
    row: Row
    pair: NDArray[np.uint8]  # the image and its heat map, shape (2, H, W, 3)


def open_csv(path: Path, columns: Sequence[str]) -> IO[str]:
    """Open a CSV file anew, with its header written; names that are not Unicode go in as they are."""
    file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    append(file, [columns])
    return file


def open_failures(folder: Path) -> IO[str]:
    """Open failures.csv, with a row for each file that cannot be used."""
    return open_csv(folder / "failures.csv", ["file", "reason"])


def append(file: IO[str], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows, floats with the digits that single precision has; all are in the file on return."""
    csv.writer(file).writerows(
        [f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    file.flush()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of scores.csv, one at a time."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            yield {
                name: None if cell == "" else cell if name in ("file", "map") else float(cell)
                for name, cell in row.items()
            }


def write_json(path: Path, summary: dict[str, Any], name: str, rows: Iterable[Row]) -> None:
    """Write a summary and, under a name, its rows, one at a time; whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=1, allow_nan=False).removesuffix("\n}") + f',\n "{name}": [')
        encode = json.JSONEncoder(allow_nan=False).encode  # made once, not for each row
        for number, row in enumerate(rows):
            file.write(("," if number else "") + "\n  " + encode(row))
        file.write("\n ]\n}\n")
    os.replace(aside, path)


def right_aligned(first: str, *others: str) -> Table:
    """A table for the terminal, of names and numbers."""
    table = Table(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def score_table(rows: Sequence[Row], seen: int) -> Table:
    """The most probable first; a line marks the middle if more images were seen."""
    table = right_aligned("file", "bits/dim", "dB/dim", "percentile", "d_eff")
    for number, row in enumerate(rows):
        if seen > len(rows) and number == len(rows) // 2:
            table.add_row(f"… {seen - len(rows):,} more …")
        percentile = f"{row['percentile']:.1f}" if "percentile" in row else ""
        dimension = ""
        if "effective_dimension" in row:
            dimension = f"{row['effective_dimension']:,.1f} ± {row['effective_dimension_stderr']:.1f}"
        name = Text(printable(row["file"]), overflow="ellipsis", no_wrap=True)
        table.add_row(name, f"{row['bits_per_dim']:.3f}", f"{row['db_per_dim']:.2f}", percentile, dimension)
    return table


def photograph_table(rows: Sequence[Row], seen: int) -> Table:
    """Photographs of any size, the most probable first; a line marks the middle if more were seen."""
    forms = {"bits_per_dim": ".3f", "bytes": ",.0f", "percentile": ".0f", "bound": ".3f"}
    forms = {name: form for name, form in forms.items() if any(name in row for row in rows)}
    names = [{"bits_per_dim": "bits/dim"}.get(name, name) for name in forms]
    table = right_aligned("file", "size", *names, "unlike" if any("unlike" in row for row in rows) else "")
    for number, row in enumerate(rows):
        if seen > len(rows) and number == len(rows) // 2:
            table.add_row(f"… {seen - len(rows):,} more …")
        cells = [f"{row[name]:{form}}" if name in row else "" for name, form in forms.items()]
        name = Text(printable(row["file"]), overflow="ellipsis", no_wrap=True)
        table.add_row(name, f"{row['width']}×{row['height']}", *cells, row.get("unlike", ""))
    return table


def draw_sheet(shown: Sequence[Thumbnail], seen: int, scale: tuple[float, float]) -> NDArray[np.uint8]:
    """Images beside their heat maps, whose colours span `scale` in bits a dimension, as RGB (H, W, 3)."""
    cells = []
    for thumbnail in shown:
        name = printable(thumbnail.row["file"]).rpartition("/")[2]
        name = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
        pair = _channels_first(thumbnail.pair)[None]
        cells.append(tile(pair, [name], caption=f"{thumbnail.bits:.3f}", side=THUMBNAIL))
    which = f"the {seen} images" if seen == len(shown) else f"the extremes of {seen:,} images"
    above = "the image" if seen == 1 else f"{which}, the most probable first"
    right = f"right of each: bits of each pixel and channel, {scale[0]:.2f} (dark) to {scale[1]:.2f} (bright)"
    caption = f"{above}: bits/dim, file\n{right}"
    return tile(arrange(_channels_first(np.stack(cells))), caption=caption, side=1)


def _channels_first(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """RGB of 8 bits (…, H, W, 3) as pixels in [0, 1], shape (…, 3, H, W)."""
    return torch.from_numpy(pixels).movedim(-1, -3) / 255.0
