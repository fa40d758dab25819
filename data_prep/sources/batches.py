"""Batch files, pickled or npz: tables of uint8 images, one row an image, channel-major."""

import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import safe_pickle
from data_prep.plan import Images, Table, Unit
from data_prep.sources.archive import FileRef, explained, files_below, is_archive, members, refuse_bomb
from dualscore.errors import DataError

MOST_BYTES = 2**34
"""Of one table, which is read whole; all of ImageNet64 takes less."""


@dataclass(frozen=True)
class BatchUnit(Unit):
    """Images of one batch file in the file's order, from ``start`` on, of ``rows`` that it holds."""

    ref: FileRef
    image_shape: tuple[int, int, int]
    rows: int
    start: int = 0

    @contextmanager
    def open(self) -> Iterator[Images]:
        """Read the whole file; no more than this one is held."""
        table = _read_npz(self.ref) if self.ref.name.endswith(".npz") else _read_pickle(self.ref)
        _check_table(self.ref, table.shape, self.image_shape)
        _check_kind(self.ref, table.dtype)
        if len(table) != self.rows:
            raise DataError(f"{self.ref} changed while it was read: run again")
        yield Table(table.reshape(-1, *self.image_shape)[self.start : self.start + self.images])


def batch_unit(split: str, ref: FileRef, image_shape: tuple[int, int, int]) -> BatchUnit:
    """A unit whose number of images is read from the beginning of the file."""
    if ref.name.endswith(".npz"):
        shape = _peek_npz(ref)
    else:
        with ref.open() as file:
            shape = safe_pickle.peek_shape(file, str(ref))  # type: ignore[arg-type]
    _check_table(ref, shape, image_shape)
    return BatchUnit(split, shape[0], ref, image_shape, rows=shape[0])


def held_out(count: int, most: int, share: int) -> int:
    """How many of the last training images validate: ``most``, or of few one in ``share``, at least one."""
    return max(1, min(most, count // share))


def split_last(units: Sequence[BatchUnit], most: int, share: int) -> list[BatchUnit]:
    """Training files, the end of the last of which becomes the validation split; see `held_out`."""
    *others, last = units
    val = held_out(last.rows, most, share)
    train = replace(last, images=last.rows - val)
    parts = [train] if train.images else []
    return [*others, *parts, replace(last, split="val", images=val, start=train.images)]


def search(src: Path, pattern: str, archives: str) -> list[FileRef]:
    """Files named like ``pattern`` below ``src`` or in archives there named like ``archives``, by name.

    Of two files with the same stem, one unpacked comes before one in an archive.
    """
    paths = source_files(src, pattern, archives)
    refs = [FileRef(path) for path in paths]
    for path in paths:
        if is_archive(path) and (path == src or re.fullmatch(archives, path.name, re.IGNORECASE)):
            refs += members(path)
    found: dict[str, FileRef] = {}
    for ref in refs:
        if re.fullmatch(pattern, ref.name):
            kept = found.setdefault(ref.name.removesuffix(".npz"), ref)
            if kept is not ref and kept.name == ref.name and ref.member is None:
                raise DataError(
                    f"{kept} and {ref} have the same name: give the folder of one of them as --src"
                )
    return [found[name] for name in sorted(found, key=_natural)]


def source_files(src: Path, pattern: str, archives: str) -> list[Path]:
    """Files and archives that could hold batches, without opening any."""
    wanted = re.compile(f"(?:{pattern})|(?i:{archives})")
    if src.is_file():
        return [src] if wanted.fullmatch(src.name) or is_archive(src) else []
    return files_below(src, lambda name: wanted.fullmatch(name) is not None)


def numbers(refs: Sequence[FileRef]) -> list[int]:
    """The numbers at the end of the files' stems."""
    return [int(found[-1]) for ref in refs if (found := re.findall(r"\d+", ref.name.removesuffix(".npz")))]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _check_table(ref: FileRef, shape: Sequence[int], image_shape: tuple[int, int, int]) -> None:
    row = math.prod(image_shape)
    if math.prod(shape) > MOST_BYTES:
        raise DataError(f"{ref} claims a table of shape {tuple(shape)}: refused; download it again")
    if len(shape) == 2 and shape[0] > 0 and shape[1] == row:
        return
    kind = f"a table of shape {tuple(shape)}"
    if len(shape) == 2 and shape[0] > 0 and 3 * (side := math.isqrt(shape[1] // 3)) ** 2 == shape[1]:
        kind = f"images of {side}×{side}"
    wanted = f"{image_shape[1]}×{image_shape[2]}"
    raise DataError(f"{ref} holds {kind} instead of images of {wanted}: check --src and the data set's name")


def _check_kind(ref: FileRef, dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8:
        raise DataError(f"{ref}: data is {dtype}, not uint8; download the official file again")


def _read_pickle(ref: FileRef) -> NDArray[Any]:
    with ref.open() as file:
        batch = safe_pickle.load_batch(file, str(ref))  # type: ignore[arg-type]
    if not isinstance(table := batch.get("data"), np.ndarray):
        raise DataError(f"{ref} has no array under the key 'data'; download the official file again")
    return table


def _peek_npz(ref: FileRef) -> tuple[int, ...]:
    if ref.member is not None:
        raise DataError(f"{ref.path} holds npz files: unzip it first, and give the folder as --src")
    with explained(ref.path), zipfile.ZipFile(ref.path) as archive:
        if "data.npy" not in archive.namelist():
            raise DataError(f"{ref} has no array 'data'; download the official file again")
        info = archive.getinfo("data.npy")
        refuse_bomb(ref, info.compress_size, info.file_size)
        with archive.open("data.npy") as file:
            try:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
            except ValueError as error:
                raise DataError(f"{ref}: the array 'data' is damaged ({error}); download it again") from None
        _check_kind(ref, dtype)
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise DataError(f"{ref}: the array 'data' is cut off; download it again")
    return shape


def _read_npz(ref: FileRef) -> NDArray[Any]:
    with explained(ref.path):
        try:
            with np.load(ref.path, allow_pickle=False) as arrays:
                table: NDArray[Any] = arrays["data"]
        except (ValueError, MemoryError) as error:
            raise DataError(f"{ref}: the array 'data' is damaged ({error}); download it again") from None
    return table
