"""Image files for every command that takes them: find, decode and batch them, report unusable ones."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from dualscore.bars import counted
from dualscore.data.loader import Loader, deaths_told
from dualscore.errors import ScoreError, did_you_mean
from dualscore.files.plain_text import printable
from dualscore.pictures.photographs import UnsuitableError, read_exact, read_rgb
from dualscore.pictures.walk import COMMON, Entry, is_picture, not_the_files, passed_over, trouble, walk
from dualscore.scoring.score_files import append

MOST_PIXELS = 2**26
"""Larger images are taken for decompression bombs, unless they already have the wanted size."""
AGAIN = "is the same file as another, which counts once"
MOST_ENLARGED = 2
"""Smaller images say too little: enlarged they are smooth, and found probable."""
PROBLEMS_SHOWN = 10


def check_given(given: Sequence[Path], left_out: Path, hint: str = "") -> None:
    """Refuse missing files (the message ends with `hint`) and a results folder that holds the images."""
    for path in given:
        if not path.exists() and not path.is_symlink():
            hints = [f"there is no folder {path.parent} either"]
            if path.parent.is_dir():
                hints = [did_you_mean(path.name, os.listdir(path.parent)).strip()]
            raise ScoreError("; ".join(filter(None, [f"{path}: no such file or folder", *hints, hint])))
        if os.path.realpath(path) == os.path.realpath(left_out):
            # Heat maps written there would be found as images while the folder is being read.
            raise ScoreError(f"{path}: holds the images; name another folder for the results")


def find(given: Sequence[Path], left_out: Path) -> Iterator[Path]:
    """Files as given, and pictures below given folders, as `walk` finds them, without what it leaves out."""
    return (path for path, problem in entries(given, left_out) if problem is None)


def entries(
    given: Sequence[Path],
    left_out: Path,
    others: Counter[str] | None = None,
    wanted: Callable[[str], bool] = is_picture,
    seen: set[tuple[int, int]] | None = None,
) -> Iterator[Entry]:
    """The same, and what is left out with the reason; `wanted` and `others` are as `walk` takes them.

    A file that is met again, given twice or by another link, or `seen` before, is left out: each counts once
    in a mean.
    """
    seen = set() if seen is None else seen
    for path in given:
        found = walk(path, left_out, wanted, others) if os.path.isdir(path) else [Entry(path, trouble(path))]
        for entry in found:
            if entry.problem is None and not first_time(entry.path, seen):
                yield Entry(entry.path, AGAIN)
            else:
                yield entry


def first_time(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a file was not `seen`, where it becomes so; one that has just gone is told when it is read."""
    try:
        status = path.stat()
    except OSError:
        return True
    key, before = (status.st_dev, status.st_ino), len(seen)
    seen.add(key)
    return len(seen) > before


@dataclass(frozen=True)
class Size:
    """The size that images must have, in pixels, and the channels that the model sees."""

    channels: int
    height: int
    width: int
    resize: bool = False  # crop and resize other sizes instead of refusing them
    hint: str = ""  # why other sizes are refused, and the way out

    def check(self, stored: tuple[int, int], turned: bool = True) -> None:
        """Refuse a (width, height) as UnsuitableError; the image may be stored `turned`."""
        if self.resize:
            check_pixels(stored)
            sides = [(self.width, self.height), *([(self.height, self.width)] if turned else [])]
            if all(max(w / stored[0], h / stored[1]) > MOST_ENLARGED for w, h in sides):
                small, wanted = f"{stored[0]}×{stored[1]}", f"{self.width}×{self.height}"
                raise UnsuitableError(f"is {small}, too small to be enlarged to {wanted}")
        elif stored != (self.width, self.height) and not (turned and stored == (self.height, self.width)):
            wanted = f"{self.width}×{self.height}"
            raise UnsuitableError(f"is {stored[0]}×{stored[1]}, but wanted are {wanted} images{self.hint}")


def check_pixels(stored: tuple[int, int]) -> None:
    """Refuse a (width, height) that is taken for a decompression bomb's as UnsuitableError."""
    if stored[0] * stored[1] > MOST_PIXELS:
        raise UnsuitableError(f"has too many pixels: {stored[0]}×{stored[1]}")


def decode(path: Path, size: Size) -> NDArray[np.uint8]:
    """Read an image as RGB of shape (3, H, W); raises ValueError with the reason if it cannot be used.

    Resizing keeps the middle and averages what each pixel covers (Pillow's box filter), as the official
    down-sampled ImageNet does.
    """
    return as_rgb(read_file(path, size.check), size)


def read_file(path: Path, check: Callable[[tuple[int, int]], None]) -> Image.Image:
    """What `read_rgb` reads of a path; a ValueError too where it is no file that ends."""
    return read_rgb(_ending(path), check)


def read_exactly(file: Path | IO[bytes], check: Callable[[tuple[int, int]], None]) -> Image.Image:
    """What `read_exact` reads of a file; a ValueError too where it is none that ends."""
    return read_exact(_ending(file) if isinstance(file, Path) else file, check)


def _ending(path: Path) -> Path:
    """The path of a file; reading a pipe would wait for ever."""
    if (problem := trouble(path)) is not None:
        raise ValueError(problem)
    return path


def as_rgb(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """An image of the wanted size, or cut and resized to it, of shape (3, H, W)."""
    size.check(image.size, turned=False)
    if image.size != (size.width, size.height):
        image = ImageOps.fit(image, (size.width, size.height), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


def first_size(given: Sequence[Path], left_out: Path) -> tuple[int, int]:
    """Height and width of the first readable image; ScoreError if there is none."""
    for path in find(given, left_out):
        with suppress(ValueError):
            image = read_rgb(path, check_pixels)
            return image.height, image.width
    raise ScoreError(f"{given[0]}: no image that can be read ({COMMON})")


class Chunk(NamedTuple):
    """A batch of decoded files."""

    paths: list[str]
    images: Tensor  # uint8, shape (n, 3, H, W)
    failed: list[tuple[str, str]]  # files that could not be used, each with the reason


class ImageFiles(Dataset[Chunk]):
    """Files, found here and decoded batch by batch in loader processes."""

    def __init__(self, given: Sequence[Path], left_out: Path, size: Size, batch_size: int) -> None:
        self.given, self.left_out = list(given), left_out
        self.size, self.batch_size = size, batch_size
        self.others = Counter[str]()
        """Files of given folders that are no pictures, by their endings."""

    def batches(self) -> Iterator[list[Entry]]:
        """Every file once, in the order that they are found in."""
        files = entries(self.given, self.left_out, self.others)
        while batch := list(islice(files, self.batch_size)):
            yield batch

    def __getitem__(self, files: list[Entry]) -> Chunk:
        """A batch of files, decoded."""
        paths, images, failed = [], [], []
        for path, problem in files:
            if problem is not None:
                failed.append((str(path), problem))
                continue
            try:
                images.append(decode(path, self.size))
                paths.append(str(path))
            except OSError as error:
                not_the_files(error)
                failed.append((str(path), f"cannot be read: {error.strerror}"))
            except ValueError as error:
                failed.append((str(path), str(error)))
        shape = (0, 3, self.size.height, self.size.width)
        stacked = np.stack(images) if images else np.zeros(shape, dtype=np.uint8)
        return Chunk(paths, torch.from_numpy(stacked), failed)


class Problems:
    """Counts the files that cannot be used, by kind of reason; a CSV file gets rows (file, reason)."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self.file, self.count, self.first = file, 0, ""
        self.kinds: dict[str, tuple[int, str]] = {}
        """How often each kind of reason came, and its first message; within a kind only numbers differ."""
        self.others = Counter[str]()
        """Files that are no pictures, by their endings."""

    def add(self, problems: Sequence[tuple[str, str]]) -> None:
        """Take files, each with its reason."""
        if self.file is not None:
            append(self.file, problems)
        for path, reason in problems:
            line, kind = f"{printable(path)} {reason}", re.sub(r"\d+", "#", reason)
            count, first = self.kinds.get(kind, (0, line))
            self.kinds[kind] = count + 1, first
            self.count, self.first = self.count + 1, self.first or line

    def add_not_finite(self, paths: Iterable[str]) -> None:
        """Take images whose figures are not finite."""
        self.add([(path, "has an energy or a denoised image that is not finite") for path in paths])

    def reason(self, given: Sequence[Path]) -> str:
        """Why no image of those given could be used."""
        return self.first or f"{given[0]} holds no image ({COMMON})"

    def tell(self, console: Console) -> None:
        """Print how many files each kind left out, and the first of them, and how many are no pictures."""
        kinds = sorted(self.kinds.values(), key=lambda kind: -kind[0])
        for count, first in kinds[:PROBLEMS_SHOWN]:
            many = "" if count == 1 else f"{count:,} images; the first, "
            console.print(f"left out: {many}{first}", soft_wrap=True)
        if more := len(kinds[PROBLEMS_SHOWN:]):
            console.print(f"left out: images for {more} more reasons", soft_wrap=True)
        for line in passed_over(self.others):
            console.print(line, soft_wrap=True)


@contextmanager
def read_batches(
    files: ImageFiles, workers: int, problems: Problems, console: Console, doing: str
) -> Iterator[Iterator[Chunk]]:
    """The batches that hold an image, in order, decoded in `workers` processes; 0 decodes in this one.

    Failed files become `problems`; a terminal shows a count.
    """
    # PyTorch passes over nothing of a data set that is asked for its batches.
    loader = Loader(files, workers, asked_for=files.batches())
    problems.others = files.others
    with counted(console, doing) as advance:

        def usable() -> Iterator[Chunk]:
            for chunk in loader:
                problems.add(chunk.failed)
                if chunk.paths:
                    yield chunk
                advance(len(chunk.paths))

        with deaths_told("try a smaller --batch-size, or --workers 0", ScoreError):
            yield usable()


class Photographs:
    """Which photograph each image file is of; prints as `2 photographs (sub-folders)`.

    Crops of one photograph resemble each other, so an error over crops is far too small. No manifest says
    what files were cut from, so their folders do: if a given folder holds pictures in its sub-folders only,
    each sub-folder is a photograph. Any other file is a photograph of its own.
    """

    def __init__(self, given: Sequence[Path], files: Iterable[str] = ()) -> None:
        folders = [path for path in given if path.is_dir()]
        self.parted = [f for f in folders if not any(map(is_picture, next(os.walk(f), ("", [], []))[2]))]
        self.folders: dict[Path, int] = {}
        self.groups = array("q")
        """A number for each file: from 0 on of a sub-folder, below 0 of the file itself."""
        self.add(files)

    def add(self, files: Iterable[str]) -> None:
        """Take files, named as `find` does."""
        for path in map(Path, files):
            above = next((folder for folder in self.parted if folder in path.parents), path.parent)
            photograph = above / path.relative_to(above).parts[0]
            if photograph == path:
                self.groups.append(~len(self.groups))
            else:
                self.groups.append(self.folders.setdefault(photograph, len(self.folders)))

    @property
    def total(self) -> int:
        """All photographs."""
        return len(self.folders) + sum(number < 0 for number in self.groups)

    def __str__(self) -> str:
        folders, own = len(self.folders), self.total - len(self.folders)
        count = "one photograph" if self.total == 1 else f"{self.total:,} photographs"
        if not own:
            return f"{count} ({'sub-folder' if folders == 1 else 'sub-folders'})"
        if not folders:
            return f"{count} ({'the image' if own == 1 else 'each image its own'})"
        return f"{count} ({folders:,} by sub-folder, {own:,} by image)"
