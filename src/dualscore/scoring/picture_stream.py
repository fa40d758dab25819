"""Pictures of files, folders, tars and prepared data sets one after another, numbered and decoded ahead."""

import io
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualscore.data.shards import MANIFEST_FILE
from dualscore.errors import ScoreError
from dualscore.files.tars import TAR_SUFFIXES
from dualscore.pictures.photographs import read_rgb
from dualscore.pictures.walk import is_picture, not_the_files
from dualscore.scoring.image_files import AGAIN, check_pixels, entries, first_time, read_file
from dualscore.scoring.stored_pixels import is_tar, prepared_images, tar_entries

AHEAD = 4
"""Pictures that are decoded ahead for each thread."""


class Picture(NamedTuple):
    """One that was decoded, or the reason why it was not."""

    number: int  # from 0 on, of all that was found
    name: str
    pixels: NDArray[np.uint8] | None  # RGB, shape (3, H, W)
    problem: str = ""


Reader = Callable[[Path | IO[bytes]], NDArray[np.uint8]]
"""Pixels (C, H, W) of a file or of its content; a ValueError or OSError says why there are none."""


def as_seen(file: Path | IO[bytes]) -> NDArray[np.uint8]:
    """A picture as RGB, (3, H, W), turned upright and laid over white."""
    image = read_file(file, check_pixels) if isinstance(file, Path) else read_rgb(file, check_pixels)
    return np.asarray(image).transpose(2, 0, 1)


class Found(NamedTuple):
    """One that was not decoded yet."""

    name: str
    read: Callable[[], NDArray[np.uint8]]  # a ValueError or OSError says why it cannot


def pictures(
    given: Sequence[Path],
    left_out: Path,
    *,
    first: int = 0,
    before: str = "",
    part: tuple[int, int] = (1, 1),
    threads: int = 1,
    others: Counter[str] | None = None,
    reader: Reader = as_seen,
) -> Iterator[Picture]:
    """Pictures from number `first` on, of them the `part` k of n: those whose numbers leave k − 1 over n.

    They come in the order that they are found in, whatever threads decode them; at most a few at once are in
    memory. A file that is met again is left out. A ScoreError says that the one `before` the first, if it is
    named, is another now, so that what is first has changed.
    """
    which, parts = part
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: deque[Future[Picture]] = deque()
        for number, found in enumerate(_found(given, left_out, others, reader)):
            if before and number == first - 1 and found.name != before:
                raise ScoreError(
                    f"{given[0]}: has other images than when this began: {found.name} where {before} was; "
                    "name another --out, or remove it to begin anew"
                )
            if number < first or number % parts != which - 1:
                continue
            waiting.append(pool.submit(_decode, number, found))
            if len(waiting) >= AHEAD * max(1, threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode(number: int, found: Found) -> Picture:
    try:
        return Picture(number, found.name, found.read())
    except OSError as error:
        not_the_files(error)
        return Picture(number, found.name, None, f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Picture(number, found.name, None, str(error))


def _found(
    given: Sequence[Path], left_out: Path, others: Counter[str] | None, reader: Reader
) -> Iterator[Found]:
    """What there is, in the order given, each once; folders' pictures and tars by their names."""
    seen = set[tuple[int, int]]()
    for kind, paths in groupby(given, _kind):
        if kind == "files":
            for entry in entries([*paths], left_out, others, _wanted, seen):
                if entry.problem is not None:
                    yield Found(str(entry.path), partial(_refuse, entry.problem))
                elif is_tar(entry.path):
                    yield from _of_tar(entry.path, reader)
                else:
                    yield Found(str(entry.path), partial(reader, entry.path))
            continue
        for path in paths:
            if not first_time(path, seen):
                yield Found(str(path), partial(_refuse, AGAIN))
            elif kind == "tar":
                yield from _of_tar(path, reader)
            else:
                for name, pixels in prepared_images(path):
                    yield Found(name, partial(_as_it_is, pixels))


def _kind(path: Path) -> str:
    if (path / MANIFEST_FILE).is_file():
        return "prepared"
    return "tar" if is_tar(path) else "files"


def _wanted(name: str) -> bool:
    return is_picture(name) or (not name.startswith(".") and name.lower().endswith(TAR_SUFFIXES))


def _of_tar(path: Path, reader: Reader) -> Iterator[Found]:
    try:
        for name, content, problem in tar_entries(path):
            whole = f"{path}/{name}"
            yield Found(
                whole, partial(_refuse, problem) if content is None else partial(_read, reader, content)
            )
    except ScoreError as error:  # what was read of it stays
        yield Found(str(path), partial(_refuse, str(error).removeprefix(f"{path}: ")))


def _as_it_is(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def _refuse(problem: str) -> NDArray[np.uint8]:
    raise ValueError(problem)


def _read(reader: Reader, content: bytes) -> NDArray[np.uint8]:
    return reader(io.BytesIO(content))
