"""Images of files, folders, tars and prepared data sets in one file of pixels, which memory does not hold."""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from dualscore.data.datamodule import Batching
from dualscore.data.reader import ShardDataModule
from dualscore.data.shards import MANIFEST_FILE, Manifest
from dualscore.errors import ScoreError
from dualscore.files.tars import TAR_SUFFIXES, forget_members
from dualscore.images import in_channels
from dualscore.measuring.subject import KINDS
from dualscore.pictures.photographs import read_rgb
from dualscore.pictures.walk import COMMON, is_picture
from dualscore.scoring.image_files import (
    ImageFiles,
    Photographs,
    Problems,
    Size,
    as_rgb,
    check_pixels,
    first_size,
    read_batches,
)

AT_ONCE = 256
MOST_BYTES = 2**28
"""Larger entries of a tar are left out: they are no pictures of these sizes."""
Some = tuple[NDArray[np.uint8], list[str], list[int]]
"""Images (n, 3, H, W), the name of each, and a number of the photograph that each is of."""


@dataclass(frozen=True)
class StoredPixels:
    """Images of a file, read where `measure` asks for them, in a model's channels on its device."""

    rows: NDArray[np.uint8]  # of the file, shape (n, 3, H, W)
    channels: int
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, H, W)."""
        count, _, height, width = self.rows.shape
        return count, self.channels, height, width

    def __getitem__(self, places: Tensor) -> Tensor:
        """Images at places (B,), uint8, shape (B, C, H, W)."""
        found = torch.from_numpy(self.rows[places.cpu().numpy()])
        return in_channels(found, self.channels).to(self.device)


@dataclass(frozen=True)
class Gathered:
    """What was stored: the images, what each is called, and which photograph it is of."""

    rows: NDArray[np.uint8]  # of a file that has no name any more, shape (n, 3, H, W)
    names: list[str]
    photographs: Tensor  # numbers, (n,)
    over: str  # what errors are over, for people
    digest: str  # SHA-256 of all pixels

    def seen(self, channels: int, device: torch.device) -> StoredPixels:
        """The images as a model of so many channels sees them."""
        return StoredPixels(self.rows, channels, device)


def gather(
    given: Sequence[Path], path: Path, size: Size, console: Console, problems: Problems, *,
    count: int | None, workers: int,
) -> Gathered:  # fmt: skip
    """Store the first `count` images of what is given, or all, in the file at `path`.

    ScoreError where fewer than two can be used. A prepared data set gives those of its test split, or of
    validation where it has none, evenly spaced.
    """
    names: list[str] = []
    numbers, notes = array("q"), list[str]()
    found, out = hashlib.sha256(), path.parent
    with path.open("wb") as file:
        for source, note in _sources(given, out, size, console, problems, count, workers):
            first = max(numbers, default=-1) + 1
            notes.append(note)
            while len(names) != count and (some := next(source, None)) is not None:
                images, called, photographs = some
                left = len(called) if count is None else count - len(names)
                file.write(part := images[:left].tobytes())
                found.update(part)
                names += called[:left]
                numbers.extend(first + number for number in photographs[:left])
            if len(names) == count:
                break
    if len(names) < 2:
        why = problems.reason(given) if not names or problems.count else "there is no other"
        counted = f"{len(names)} image{'' if len(names) == 1 else 's'} can be measured"
        raise ScoreError(f"{given[0]}: {counted}, but an error needs two: {why}")
    different = len(set(numbers))
    own = " (each image its own)" if different == len(names) else ""
    over = f"{different:,} photographs{''.join(notes) if len(notes) == 1 else ''}{own}"
    rows = np.memmap(path, np.uint8, "r", shape=(len(names), 3, size.height, size.width))
    path.unlink()  # what is mapped stays until this process ends, however it ends
    return Gathered(rows, names, torch.tensor(numbers), over, found.hexdigest())


def first_of(given: Sequence[Path], left_out: Path) -> tuple[int, int]:
    """Height and width of the first image of prepared data sets and tars, or of files and folders."""
    for path in given:
        if (path / MANIFEST_FILE).is_file():
            shape = Manifest.load(path).image_shape
            return shape[1], shape[2]
        if is_tar(path):
            for _, content, _ in tar_entries(path):
                try:
                    if content is None:
                        continue
                    image = read_rgb(io.BytesIO(content), check_pixels)
                except ValueError:
                    continue
                return image.height, image.width
    if not (plain := [path for path in given if not is_tar(path)]):
        raise ScoreError(f"{given[0]}: holds no image ({COMMON})")
    return first_size(plain, left_out)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, by its name."""
    return path.name.lower().endswith(TAR_SUFFIXES) and not path.is_dir()


def _sources(
    given: Sequence[Path], out: Path, size: Size, console: Console, problems: Problems, count: int | None,
    workers: int,
) -> Iterator[tuple[Iterator[Some], str]]:  # fmt: skip
    """Images batch by batch, with a note on their photographs; files and folders together."""
    plain = []
    for path in {os.path.realpath(path): path for path in given}.values():
        if (path / MANIFEST_FILE).is_file():
            yield _prepared(path, size, count)
        elif is_tar(path):
            yield _of_tar(path, size, problems), ""
        else:
            plain.append(path)
    if plain:
        yield _of_files(plain, out, size, console, problems, workers), ""


def _of_files(
    given: Sequence[Path], out: Path, size: Size, console: Console, problems: Problems, workers: int
) -> Iterator[Some]:
    photographs, folders = Photographs(given), dict[int, int]()
    files = ImageFiles(given, out, size, AT_ONCE)
    with read_batches(files, workers, problems, console, "read") as chunks:
        for chunk in chunks:
            seen = len(photographs.groups)
            photographs.add(chunk.paths)
            # Files of their own have numbers below 0; all are counted from 0 on.
            groups = [folders.setdefault(n, len(folders)) for n in photographs.groups[seen:]]
            yield chunk.images.numpy(), chunk.paths, groups


def _of_tar(path: Path, size: Size, problems: Problems) -> Iterator[Some]:
    """The pictures in a tar, as WebDataset has them, read once from its beginning to its end."""
    number, entries = 0, tar_entries(path)
    while some := list(islice(entries, AT_ONCE)):
        images, names = [], []
        for name, content, problem in some:
            if content is None:
                problems.add([(f"{path}/{name}", problem)])
                continue
            try:
                images.append(as_rgb(read_rgb(io.BytesIO(content), size.check), size))
                names.append(f"{path}/{name}")
            except ValueError as error:
                problems.add([(f"{path}/{name}", str(error))])
        if names:
            yield np.stack(images), names, [number + i for i in range(len(names))]
        number += len(names)


class _Read:
    """A file that is read once, and the last bytes of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.end = file, b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        found = self.file.read(size)
        self.end = (self.end + found)[-2 * tarfile.BLOCKSIZE :]
        return found


def tar_entries(path: Path) -> Iterator[tuple[str, bytes | None, str]]:
    """Names and contents of the pictures in a tar, one after another; without content, why there is none."""
    try:
        opened = gzip.open if path.suffix.lower() in (".gz", ".tgz") else open
        with opened(path, "rb") as file:
            read = _Read(file)  # type: ignore[arg-type]
            with tarfile.open(fileobj=read, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    forget_members(archive)
                    if not member.isfile() or not is_picture(os.path.basename(member.name)):
                        continue
                    if member.size > MOST_BYTES:
                        yield member.name, None, f"has {member.size} bytes, too many"
                    elif (content := archive.extractfile(member)) is not None:
                        yield member.name, content.read(), ""
            while read.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ScoreError(f"{path}: cannot be read as a tar: {error!s:.200}") from error
    if any(read.end):  # tarfile takes a cut header for the end
        raise ScoreError(f"{path}: cannot be read as a tar: it ends too early, and images may be missing")


def prepared_images(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and pixels, (3, H, W), of each image of a prepared data set's reported split."""
    data, _ = _opened(folder)
    for images, names, _ in _some_prepared(folder, data, data.counts[data.reported]):
        yield from zip(names, images, strict=True)


def _opened(folder: Path) -> tuple[ShardDataModule, Manifest]:
    manifest = Manifest.load(folder)
    return ShardDataModule(
        folder, manifest, Batching(AT_ONCE, 1, 0, 1, 0, 1, AT_ONCE), shuffle_buffer=1
    ), manifest


def _some_prepared(folder: Path, data: ShardDataModule, count: int) -> Iterator[Some]:
    split = data.reported
    for batch in data.evenly_spaced(split, count, AT_ONCE):
        numbers = data.photographs(split, batch.position)
        groups = (batch.position if numbers is None else numbers).tolist()
        names = [f"{folder}/{split}/{place}" for place in batch.position.tolist()]
        yield batch.image.expand(-1, 3, -1, -1).numpy(), names, groups


def _prepared(folder: Path, size: Size, count: int | None) -> tuple[Iterator[Some], str]:
    """Images of a data set that `dualscore data build` prepared."""
    data, manifest = _opened(folder)
    if manifest.image_shape[1:] != (size.height, size.width):
        stored, wanted = (f"{h}×{w}" for h, w in (manifest.image_shape[1:], (size.height, size.width)))
        raise ScoreError(f"{folder}: images are {stored}, but wanted are {wanted}{size.hint}")
    images = _some_prepared(folder, data, count or data.counts[data.reported])
    return images, f" of {manifest.dataset}'s {KINDS[data.reported]} images"
