"""One row an image: appended to a CSV file as it comes, then JSON and a table for people."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from rich.table import Table
from rich.text import Text

from dualscore.files.plain_text import printable

_TEXT = {"file", "map"}


@dataclass(frozen=True)
class Row:
    """An image's scores; None is an empty cell."""

    file: str
    bits_per_dim: float
    db_per_dim: float
    """Log p, as the paper plots it."""
    percentile: float | None
    """Share of the validation images that are less probable, in percent."""
    effective_dimension: float | None
    effective_dimension_stderr: float | None
    map: str | None
    """The heat map's file, relative to the rows'."""


COLUMNS = [field.name for field in fields(Row)]


def open_csv(path: Path, columns: Sequence[str]) -> IO[str]:
    """Open a CSV file anew, with its header written; names that are not Unicode go in as they are."""
    file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    csv.writer(file).writerow(columns)
    return file


def append(file: IO[str], rows: Sequence[Sequence[Any]]) -> None:
    """Append rows, all of them written before this returns."""
    csv.writer(file).writerows(rows)
    file.flush()


def values(row: Row) -> list[Any]:
    """A row's cells, numbers with the digits that single precision has."""
    return [f"{cell:.7g}" if isinstance(cell, float) else cell for cell in vars(row).values()]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file one by one, as plain values."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        cells = csv.reader(file)
        names = next(cells)
        for row in cells:
            yield {
                name: None if cell == "" else cell if name in _TEXT else float(cell)
                for name, cell in zip(names, row, strict=True)
            }


def write_json(path: Path, summary: dict[str, Any], rows: Path) -> None:
    """Write a summary and all rows, one at a time, whole or not at all.

    Args:
        path: the JSON file: the summary's keys, and `scores`, a list.
        summary: plain values.
        rows: the CSV file.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=1, allow_nan=False).removesuffix("\n}") + ',\n "scores": [')
        encode = json.JSONEncoder(allow_nan=False).encode  # made once, not for each row
        for number, row in enumerate(read_rows(rows)):
            file.write(("," if number else "") + "\n  " + encode(row))
        file.write("\n ]\n}\n")
    os.replace(aside, path)


def score_table(rows: Sequence[Row], seen: int) -> Table:
    """A table for the terminal.

    Args:
        rows: the most probable first.
        seen: how many images there were; where they are more, the middle is marked.

    Returns:
        The table.
    """
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
