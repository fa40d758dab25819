"""One shard on disk: its images by their number, read straight into the memory that will hold them."""

import os
import tarfile
from collections.abc import Iterable
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dualscore.data.shards import IMAGE_SUFFIX, Shard, entry_name
from dualscore.data.source import Source, open_shard
from dualscore.errors import DataError

BLOCK = 512
"""Of a tar: headers are one long, contents are filled up to a multiple."""
_AT_ONCE = 256
_POWERS = 10 ** np.arange(8, -1, -1, dtype=np.int64)
_OCTAL = 8 ** np.arange(5, -1, -1, dtype=np.int64)


def row_bytes(image_bytes: int) -> int:
    """Bytes that an image takes in a shard of ours, with its header."""
    return BLOCK * (1 + -(-image_bytes // BLOCK))


def positions(headers: NDArray[np.uint8], image_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The place in the split that each header, shape (n, `BLOCK`), names, and what is wrong with the header.

    That is 0 for nothing, 1 for the name, 2 for the size and 3 for the checksum.
    """
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


class ShardFile:
    """An open shard, to be closed after use, which a `with` statement does.

    Shards that this project writes hold nothing but one entry of the same size for each image, so that the
    place of every image is known; of other tars the entries are looked up once. A damaged shard is refused at
    once if `whole`; else only its lost images cannot be read. Errors are DataErrors that name the shard.
    """

    def __init__(self, source: Source, shard: Shard, image_bytes: int, whole: bool = True) -> None:
        self.name, self.shard, self.image_bytes = f"{source}/{shard.file}", shard, image_bytes
        self._row = row_bytes(image_bytes)
        try:
            self._file = open_shard(source, shard)
        except OSError as error:
            raise self._unreadable(0, error) from error
        try:
            # (position in the split, place of the pixels) of each image; None where they lie as we write them
            self._entries = None if self._is_ours(whole) else self._look_up()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def wrong(self, number: int, fault: int) -> DataError:
        """What to say of the fault that `positions` found in the header of an image."""
        what = ("", "is not named like an image", "has another size", "has a damaged header")[fault]
        return self._error(f"entry {number} {what}")

    def _fill(self, rows: list[NDArray[np.uint8]], place: int, number: int) -> None:
        """Fill rows from one place of the file on, `number` being the first row's image."""
        try:
            got = os.preadv(self._file, rows, place)  # type: ignore[arg-type] # arrays are buffers
            while got < (wanted := sum(len(row) for row in rows)):  # a signal, or the file's end
                skip, within = divmod(got, len(rows[0]))
                rest = [rows[skip][within:], *rows[skip + 1 :]]
                more = os.preadv(self._file, rest, place + got)  # type: ignore[arg-type]
                if more == 0:
                    raise self._ends(number + skip)
                got += more
            assert got == wanted
        except OSError as error:
            raise self._unreadable(number, error) from error

    def _is_ours(self, whole: bool) -> bool:
        size = os.fstat(self._file).st_size
        if whole and size < self.shard.images * self._row:
            return False
        first = os.pread(self._file, BLOCK, 0)
        if len(first) == BLOCK and not self._faults(first):
            return True
        if whole:
            return False
        try:
            tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            # Damaged: the next ones tell. (A sound one that is no image of ours means another kind of tar.)
            rows = range(1, min(4, self.shard.images, size // self._row))
            return len(rows) > 0 and not any(
                self._faults(os.pread(self._file, BLOCK, number * self._row)) for number in rows
            )
        return False

    def _faults(self, header: bytes) -> bool:
        return bool(positions(np.frombuffer(header, np.uint8)[None], self.image_bytes)[1].any())

    def _look_up(self) -> list[tuple[int, int]]:
        """Find the images of a tar of any other kind."""
        size = os.fstat(self._file).st_size
        entries: list[tuple[int, int]] = []
        others: dict[str, None] = {}
        try:
            with (
                os.fdopen(os.dup(self._file), "rb") as stream,
                tarfile.open(fileobj=stream, mode="r:") as tar,
            ):
                for member in _files(tar):
                    key, _, suffix = member.name.rpartition("/")[2].partition(".")
                    if f".{suffix}" != IMAGE_SUFFIX:
                        others[key] = None
                        continue
                    if not (key.isascii() and key.isdecimal()):
                        raise self._error(f"entry {member.name!r:.100} is not an image")
                    if member.size != self.image_bytes:
                        raise self._error(
                            f"image {key} has {member.size} bytes instead of {self.image_bytes}"
                        )
                    if member.offset_data + member.size > size:
                        raise self._ends(len(entries))
                    entries.append((int(key), member.offset_data))
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            raise self._unreadable(len(entries), error) from error
        if not entries and others:
            raise self._error(f"entry {next(iter(others))!r:.100} is not an image")
        if len(entries) < self.shard.images:
            raise self._ends(len(entries))
        return entries

    def _error(self, problem: str) -> DataError:
        again = "verify the data set with make verify-data, or prepare it again"
        return DataError(f"{self.name}: {problem}; {again}")

    def _unreadable(self, images: int, error: Exception) -> DataError:
        return self._error(f"cannot be read after {images} images ({error})")

    def _ends(self, images: int) -> DataError:
        return self._error(f"ends after {images} of its {self.shard.images} images")


def _files(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    return (member for member in tar if member.isfile() and not member.issparse())
