"""One shard on disk: its images by their number, and the memory that they are read into."""

import errno
import math
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dualscore.data.datamodule import Batch
from dualscore.data.shards import IMAGE_SUFFIX, Shard, entry_name
from dualscore.data.source import Source, open_shard
from dualscore.errors import DataError, SourceError

BLOCK = 512
"""Of a tar: headers are one long, contents are filled up to a multiple."""
FAULTS = ("", "is not named like an image", "has another size", "has a damaged header")
_AT_ONCE = 256
_POWERS = 10 ** np.arange(8, -1, -1, dtype=np.int64)
_OCTAL = 8 ** np.arange(5, -1, -1, dtype=np.int64)


def row_bytes(image_bytes: int) -> int:
    """Bytes that an image takes in a shard of ours, with its header."""
    return BLOCK * (1 + -(-image_bytes // BLOCK))


def positions(headers: NDArray[np.uint8], image_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The place in the split that each header, shape (n, `BLOCK`), names, and which of `FAULTS` it has."""
    name = np.frombuffer(IMAGE_SUFFIX.encode() + b"\0", np.uint8)
    size = np.frombuffer(b"%011o" % image_bytes, np.uint8)
    digits = headers[:, :9] - np.uint8(ord("0"))  # what is not a digit exceeds 9
    named = (digits <= 9).all(1) & (headers[:, 9 : 9 + len(name)] == name).all(1)
    sized = (headers[:, 124:135] == size).all(1) & np.isin(headers[:, 156], (0, ord("0")))
    told = (headers[:, 148:154].astype(np.int64) - ord("0")) @ _OCTAL
    # The checksum counts its own field as eight spaces.
    total = headers.sum(1, dtype=np.int64) - headers[:, 148:156].sum(1, dtype=np.int64) + 8 * ord(" ")
    faults = np.select([~named, ~sized, total != told], [1, 2, 3], 0)
    return digits.astype(np.int64) @ _POWERS, faults


def unreadable(source: Source, shard: Shard, problem: str) -> DataError:
    """What to say of a shard that cannot be read."""
    again = "verify the data set with make verify-data, or prepare it again"
    return DataError(f"{source}/{shard.file}: {problem}; {again}")


class ShardFile:
    """An open shard, to be closed after use.

    Shards that this project writes hold nothing but one entry of the same size for each image, so that the
    place of every image is known; of other tars the entries are looked up once. DataErrors name the shard.
    """

    def __init__(self, source: Source, shard: Shard, image_bytes: int) -> None:
        self.source, self.shard, self.image_bytes = source, shard, image_bytes
        self._row = row_bytes(image_bytes)
        try:
            self._file = open_shard(source, shard)
        except OSError as error:
            raise self._wrong(0, error) from error
        try:
            # (position in the split, place of the pixels) of each image; None where they lie as we write them
            self._entries = None if self._is_ours() else self._look_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def read(self, first: int, rows: list[NDArray[np.uint8]]) -> None:
        """Read successive entries, each a header and an image's pixels, as this project writes them.

        Rows are of `row_bytes` bytes, the pixels from byte `BLOCK` on. Headers are not looked at: `positions`
        does that for many entries at once.
        """
        if self._entries is None:
            for start in range(0, len(rows), _AT_ONCE):
                self._fill(rows[start : start + _AT_ONCE], (first + start) * self._row, first + start)
            return
        for number, row in enumerate(rows, start=first):
            position, place = self._entries[number]
            header = tarfile.TarInfo(entry_name(position))
            header.size = self.image_bytes
            row[:BLOCK] = np.frombuffer(header.tobuf(tarfile.USTAR_FORMAT), np.uint8)
            self._fill([row[BLOCK : BLOCK + self.image_bytes]], place, number)

    def _fill(self, rows: list[NDArray[np.uint8]], place: int, number: int) -> None:
        """Fill rows from one place of the file on, `number` being the first row's image."""
        try:
            got = _preadv(self._file, rows, place)
            while got < len(rows) * len(rows[0]):  # a signal, or the file's end
                skip, within = divmod(got, len(rows[0]))
                rest = [rows[skip][within:], *rows[skip + 1 :]]
                more = _preadv(self._file, rest, place + got)
                if more == 0:
                    raise self._ends(number + skip)
                got += more
        except OSError as error:
            raise self._wrong(number, error) from error

    def _is_ours(self) -> bool:
        """Whether images lie as this project writes them; of a damaged first one, the next ones tell."""
        looked_at = range(min(4, self.shard.images))
        first, *others = (os.pread(self._file, BLOCK, number * self._row) for number in looked_at)
        if self._is_sound(first):
            return True
        try:
            tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return bool(others) and all(self._is_sound(header) for header in others)
        return False

    def _is_sound(self, header: bytes) -> bool:
        row = np.frombuffer(header, np.uint8)[None]
        return len(header) == BLOCK and not positions(row, self.image_bytes)[1].any()

    def _look_up(self) -> list[tuple[int, int]]:
        """Find the images of a tar of any other kind."""
        size = os.fstat(self._file).st_size
        entries: list[tuple[int, int]] = []
        try:
            with (
                os.fdopen(os.dup(self._file), "rb") as stream,
                tarfile.open(fileobj=stream, mode="r:") as tar,
            ):
                for member in tar:
                    key, _, suffix = member.name.rpartition("/")[2].partition(".")
                    if not member.isfile() or member.issparse() or f".{suffix}" != IMAGE_SUFFIX:
                        continue
                    if not (key.isascii() and key.isdecimal()):
                        raise ValueError(f"entry {member.name!r:.100} is not an image")
                    if member.size != self.image_bytes:
                        raise ValueError(f"image {key} has {member.size} bytes instead of {self.image_bytes}")
                    if member.offset_data + member.size > size:
                        raise self._ends(len(entries))
                    entries.append((int(key), member.offset_data))
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            raise self._wrong(len(entries), error) from error
        if len(entries) < self.shard.images:
            raise self._ends(len(entries))
        return entries

    def _wrong(self, images: int, error: Exception) -> DataError:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            where = f"{self.source}/{self.shard.file}"
            return SourceError(
                f"{where}: cannot be opened ({error.strerror}); raise the limit with ulimit -n"
            )
        return unreadable(self.source, self.shard, f"cannot be read after {images} images ({error})")

    def _ends(self, images: int) -> DataError:
        return unreadable(self.source, self.shard, f"ends after {images} of its {self.shard.images} images")


@dataclass(eq=False, slots=True)
class Entry:
    """An image of a shard on its way to a batch, and the row of memory that holds it."""

    shard: Shard
    number: int
    row: int = -1


class Rows:
    """Memory for images on their way to batches; a row holds an entry of a tar, header first."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.shape, self.image_bytes = shape, math.prod(shape)
        self._rows = np.empty((count, row_bytes(self.image_bytes)), np.uint8)
        self._views = list(self._rows)
        self._free = list(range(count))

    def view(self, entry: Entry) -> NDArray[np.uint8]:
        """The row of an entry, a free one where it has none yet."""
        if entry.row < 0:
            entry.row = self._free.pop()
        return self._views[entry.row]

    def batch(self, entries: list[Entry], repair: Callable[[Entry, NDArray[np.uint8], int], int]) -> Batch:
        """Copy images into a batch and free their rows.

        `repair` takes an entry, its row and which of `FAULTS` its header has; it reads another image into the
        row and returns the place in the split of the lost one.
        """
        rows = [entry.row for entry in entries]
        headers, images = self._rows[:, :BLOCK], self._rows[:, BLOCK : BLOCK + self.image_bytes]
        position, faults = positions(headers[rows], self.image_bytes)
        replaced = np.full(len(rows), -1, np.int64)
        for place in faults.nonzero()[0]:
            replaced[place] = repair(entries[place], self.view(entries[place]), int(faults[place]))
        if faults.any():
            position, _ = positions(headers[rows], self.image_bytes)
        # Without the headers between them: a copy to a GPU would wait for images that lie apart.
        pixels = torch.from_numpy(images[rows]).view(-1, *self.shape)
        self._free += rows
        places = torch.from_numpy(position)
        return Batch(pixels, places, places, torch.from_numpy(replaced))


def _preadv(file: int, rows: list[NDArray[np.uint8]], place: int) -> int:
    """Fill rows from a place of a file on; how many bytes came."""
    if hasattr(os, "preadv"):
        return os.preadv(file, rows, place)  # type: ignore[arg-type] # arrays are buffers
    got = 0
    for row in rows:  # not every Mac's Python has it
        part = np.frombuffer(os.pread(file, len(row), place + got), np.uint8)
        row[: len(part)] = part
        got += len(part)
        if len(part) < len(row):
            break
    return got
