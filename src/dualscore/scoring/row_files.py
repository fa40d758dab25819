"""Rows in CSV files that a killed command goes on with: each picture's row is there once, in order."""

import csv
import fcntl
import heapq
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dualscore.errors import ScoreError
from dualscore.files.aside import write_aside
from dualscore.files.typed_json import read_json
from dualscore.scoring.score_files import append

if TYPE_CHECKING:
    import pyarrow

COLUMNS = (
    "number", "file", "width", "height", "model", "bits_per_dim", "bytes", "percentile", "unlike", "bound",
    "effective_dimension", "effective_dimension_stderr", "map",
)  # fmt: skip
"""Of scores.csv; what is not known is left empty."""
FAILED = ("number", "file", "reason")
TEXTS = ("file", "model", "unlike", "map", "reason")
COUNTS = ("number", "width", "height")
SCORES, FAILURES, STATE = "scores.csv", "failures.csv", "state.json"
PARQUET = "scores.parquet"
PARQUET_HINT = 'Parquet needs pyarrow, which is not installed: pip install "dualscore[parquet]"'
Row = dict[str, Any]


class RowFiles:
    """scores.csv and failures.csv of a folder, and what they are of.

    Where the folder holds an unfinished scoring of the same, its rows stay: `done` pictures need no second
    look. A killed command may leave half a row, and failures beyond the last score; both are cut off. A
    ScoreError says that another process writes there.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.scores = _opened(folder / SCORES)
        _lock(self.scores, folder)
        state = folder / STATE
        same = state.is_file() and read_json(state) == identity | {"complete": False}
        self.identity = identity
        self.done, self.last = _cut(folder / SCORES, COLUMNS, None) if same else (0, "")
        """Pictures before this number have their rows, and the name of the last of them."""
        if self.done:
            _cut(folder / FAILURES, FAILED, self.done)
        else:
            for name, columns in ((SCORES, COLUMNS), (FAILURES, FAILED)):
                with (folder / name).open("w", newline="", encoding="utf-8") as file:
                    append(file, [columns])
            write_aside(state, json.dumps(identity | {"complete": False}).encode())
        self.failures = _opened(folder / FAILURES)

    def add(self, rows: Sequence[Row], failures: Sequence[Row]) -> None:
        """Take some pictures' rows, failures first: what a killed command may have lost are scores' ends."""
        append(self.failures, [[row[name] for name in FAILED] for row in failures])
        append(self.scores, [[row.get(name) for name in COLUMNS] for row in rows])

    def close(self) -> None:
        """Close the files; they are all that there is to score."""
        self.scores.close()
        self.failures.close()
        write_aside(self.folder / STATE, json.dumps(self.identity | {"complete": True}).encode())


def _opened(path: Path) -> IO[str]:
    return path.open("a", newline="", encoding="utf-8", errors="surrogateescape")


def _lock(file: IO[str], folder: Path) -> None:
    """Keep others out until the file is closed; a file system without locks keeps nobody out."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ScoreError(
            f"{folder}: another process scores into it; wait for it, or name another --out"
        ) from None
    except OSError:
        return


def _cut(path: Path, columns: Sequence[str], below: int | None) -> tuple[int, str]:
    """Cut off what follows a file's last whole row, or the first row whose number is not `below`.

    Returns the number after that of the last row that stays, and its file's name; 0 where the file has none,
    or other columns.
    """
    if not path.is_file():
        return 0, ""
    end = number = after = 0
    name = ""
    with path.open("rb") as file:
        for line in _whole_rows(file):
            row = next(csv.reader([line.decode("utf-8", "surrogateescape")]))
            if not number:
                if tuple(row) != tuple(columns):
                    return 0, ""
            elif len(row) != len(columns) or (below is not None and int(row[0]) >= below):
                break
            else:
                after, name = int(row[0]) + 1, row[1]
            number += 1
            end += len(line)
    os.truncate(path, end)
    return after, name


def _whole_rows(file: IO[bytes]) -> Iterator[bytes]:
    """Rows with their ends; a name with a line's end in it is quoted, so that its row has several lines."""
    held = b""
    for line in file:
        held += line
        if line.endswith(b"\n") and held.count(b'"') % 2 == 0:
            yield held
            held = b""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one of the files, one at a time, what is not known left out."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            yield {name: _value(name, cell) for name, cell in row.items() if cell != ""}


def _value(name: str, cell: str) -> str | int | float:
    if name in TEXTS:
        return cell
    return int(cell) if name in COUNTS else float(cell)


def is_complete(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder's rows are all that there is to score, of the same but for what is the part's."""
    if not (folder / STATE).is_file():
        return False
    state = read_json(folder / STATE)
    return bool(state == identity | {"part": state.get("part"), "complete": True})


def merge(folders: Sequence[Path], out: Path) -> None:
    """Write the rows of finished parts into one pair of files, in order of numbers, whole or not at all."""
    for name, columns in ((SCORES, COLUMNS), (FAILURES, FAILED)):
        aside = out / f".{name}.{os.getpid()}.tmp"
        with aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            append(file, [columns])
            parts = [_of_part(folder, name) for folder in folders]
            for row in heapq.merge(*parts, key=lambda row: int(row["number"])):
                append(file, [[row.get(column) for column in columns]])
        os.replace(aside, out / name)


def _of_part(folder: Path, name: str) -> Iterator[Row]:
    """A part's rows; its maps lie below it."""
    for row in read_rows(folder / name):
        yield row | ({"map": f"{folder.name}/{row['map']}"} if "map" in row else {})


def require_parquet() -> None:
    """Refuse to write Parquet where it cannot be: before anything is scored."""
    try:
        import pyarrow.parquet  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ScoreError(PARQUET_HINT) from error


def write_parquet(out: Path, at_once: int = 10_000) -> None:
    """scores.csv as scores.parquet, so many rows at a time, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(COUNTS, pa.int64()) | dict.fromkeys(TEXTS, pa.string())
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in COLUMNS])
    aside = out / f".{PARQUET}.{os.getpid()}.tmp"
    every = read_rows(out / SCORES)
    with pq.ParquetWriter(aside, schema) as writer:
        while rows := list(islice(every, at_once)):
            writer.write_table(_table(rows, schema))
    os.replace(aside, out / PARQUET)


def _table(rows: Sequence[Row], schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow as pa

    # Names of files that are no text become text that says so.
    plain = [
        {
            k: v.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(v, str) else v
            for k, v in row.items()
        }
        for row in rows
    ]
    return pa.Table.from_pylist(plain, schema=schema)
