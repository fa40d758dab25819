"""Image files for every command that takes them: find, decode and batch them, report unusable ones."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dualscore.errors import ScoreError
from dualscore.files.plain_text import printable
from dualscore.pictures.photographs import SUFFIXES, UnsuitableError, read_rgb
from dualscore.scoring import score_files
from dualscore.settings.suggestions import did_you_mean
from dualscore.terminal import is_live

MOST_PIXELS = 2**26
"""Larger images are taken for decompression bombs, unless they already have the wanted size."""
CHUNKS_AHEAD = 2
"""Batches that each loader process decodes ahead."""
PROBLEMS_SHOWN = 10


class Chunk(NamedTuple):
    """A batch of decoded files."""

    paths: list[str]
    images: Tensor
    """uint8, shape (n, 3, H, W)."""
    failed: list[tuple[str, str]]
    """Files that could not be used, each with the reason."""


@dataclass(frozen=True)
class Size:
    """The size that images must have, in pixels."""

    height: int
    width: int
    resize: bool = False
    """Crop and resize other sizes instead of refusing them."""
    hint: str = ""
    """Why other sizes are refused, and the way out."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a command measures a stream of image files."""

    resize: bool = False
    """Crop and resize images of other sizes."""
    normalize: bool = False
    """Estimate log Z on the first images if it is not known for their size."""
    batch_size: int = 128
    workers: int = 0
    """Processes that decode."""
    device: str = "cpu"


def check_given(given: Sequence[Path], left_out: Path, hint: str = "") -> None:
    """Refuse missing files (the message ends with `hint`) and a results folder that holds the images."""
    for path in given:
        if not path.exists():
            raise ScoreError(f"{path}: no such file or folder{_similar_name(path)}{hint}")
        if path.resolve() == left_out.resolve():
            # Heat maps written there would be found as images while the folder is being read.
            raise ScoreError(f"{path}: holds the images; name another folder for the results")


def _similar_name(path: Path) -> str:
    if not path.parent.is_dir():
        return "" if path.parent == Path() else f"; there is no folder {path.parent} either"
    guess = did_you_mean(path.name, os.listdir(path.parent)).strip()
    return f"; {guess}" if guess else ""


def is_picture(name: str) -> bool:
    """Whether a file in a folder counts as a picture, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def find(given: Sequence[Path], left_out: Path) -> Iterator[Path]:
    """Files as given, and pictures below given folders in the order of names; `left_out` is never entered.

    Folders that cannot be read are yielded too, so that they are reported like unreadable files.
    """
    hidden = left_out.resolve()
    for path in given:
        if not path.is_dir():
            yield path
            continue
        unreadable: list[Path] = []
        for folder, folders, names in os.walk(path, onerror=lambda e: unreadable.append(Path(e.filename))):  # noqa: B023 - called within the loop
            folders[:] = sorted(
                n for n in folders if not n.startswith(".") and Path(folder, n).resolve() != hidden
            )
            yield from (Path(folder, name) for name in sorted(names) if is_picture(name))
        yield from unreadable


def decode(path: Path, size: Size) -> NDArray[np.uint8]:
    """Read an image as RGB of shape (3, H, W); raises ValueError with the reason if it cannot be used.

    Resizing keeps the middle and averages what each pixel covers (Pillow's box filter), as the official
    down-sampled ImageNet does.
    """

    def check(stored: tuple[int, int]) -> None:
        if size.resize:
            _check_pixels(stored)
        elif sorted(stored) != sorted((size.width, size.height)):  # it may be stored turned
            raise UnsuitableError(_wrong_size(stored, size))

    if not path.is_file():
        raise ValueError("is not a file that can be read")  # reading a pipe would wait for ever
    image = read_rgb(path, check)
    if image.size != (size.width, size.height):
        if not size.resize:
            raise UnsuitableError(_wrong_size(image.size, size))
        image = ImageOps.fit(image, (size.width, size.height), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


def _check_pixels(stored: tuple[int, int]) -> None:
    if stored[0] * stored[1] > MOST_PIXELS:
        raise UnsuitableError(f"has too many pixels: {stored[0]}×{stored[1]}")


def _wrong_size(found: tuple[int, int], size: Size) -> str:
    return f"is {found[0]}×{found[1]}, but wanted are {size.width}×{size.height} images{size.hint}"


def first_size(given: Sequence[Path], left_out: Path) -> tuple[int, int]:
    """Height and width of the first readable image; ScoreError if there is none."""
    for path in find(given, left_out):
        if path.is_file():
            with suppress(ValueError):
                image = read_rgb(path, _check_pixels)
                return image.height, image.width
    raise ScoreError(f"{given[0]}: no image that can be read ({', '.join(SUFFIXES)})")


class ImageFiles(IterableDataset[Chunk]):
    """Files decoded in batches; loader processes take turns batch by batch, so that the order stays."""

    def __init__(self, given: Sequence[Path], left_out: Path, size: Size, batch_size: int) -> None:
        self.given, self.left_out = list(given), left_out
        self.size, self.batch_size = size, batch_size

    def __iter__(self) -> Iterator[Chunk]:
        """Every file once, over all processes."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        files = find(self.given, self.left_out)
        number = 0
        while batch := list(islice(files, self.batch_size)):
            if number % step == first:
                yield self._chunk(batch)
            number += 1

    def _chunk(self, files: list[Path]) -> Chunk:
        paths, images, failed = [], [], []
        for path in files:
            try:
                images.append(decode(path, self.size))
            except OSError as error:
                failed.append((str(path), f"cannot be read: {error.strerror}"))
            except ValueError as error:
                failed.append((str(path), str(error)))
            else:
                paths.append(str(path))
        shape = (0, 3, self.size.height, self.size.width)
        stacked = np.stack(images) if images else np.zeros(shape, dtype=np.uint8)
        return Chunk(paths, torch.from_numpy(stacked), failed)


def load(files: ImageFiles, workers: int) -> "DataLoader[Chunk]":
    """The batches in order, decoded in `workers` processes; 0 decodes in this one."""
    ahead = CHUNKS_AHEAD if workers else None
    return DataLoader(
        files, batch_size=None, num_workers=workers, prefetch_factor=ahead, collate_fn=_as_it_is
    )


def _as_it_is(chunk: Any) -> Any:  # noqa: ANN401 - PyTorch's signature
    return chunk


@dataclass
class Problems:
    """Counts the files that cannot be used, by kind of reason, and lists the kinds at the end."""

    console: Console
    file: IO[str] | None = None
    """CSV file for rows (file, reason)."""
    count: int = 0
    first: str = ""
    """The first message."""
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)
    """How often each kind of reason came, and its first message."""

    def add(self, problems: Sequence[tuple[str, str]]) -> None:
        """Take files, each with its reason; reasons that differ in numbers only are of one kind."""
        if self.file is not None:
            score_files.append(self.file, problems)
        for path, reason in problems:
            self.count += 1
            line = f"{printable(path)} {reason}"
            self.first = self.first or line
            kind = re.sub(r"\d+", "#", reason)
            seen, shown = self.kinds.get(kind, (0, line))
            self.kinds[kind] = seen + 1, shown

    def tell(self) -> None:
        """Print how many files each kind left out, and the first of them."""
        for number, (count, line) in enumerate(sorted(self.kinds.values(), key=lambda kind: -kind[0])):
            if number == PROBLEMS_SHOWN:
                left = f"left out: images for {len(self.kinds) - number} more reasons"
                self.console.print(left, soft_wrap=True)
                return
            many = "" if count == 1 else f"{count:,} images; the first, "
            self.console.print(f"left out: {many}{line}", soft_wrap=True)


def usable(chunks: Iterator[Chunk], problems: Problems) -> Iterator[Chunk]:
    """The batches that hold an image; failed files become `problems`. ScoreError if a loader process died."""
    try:
        for chunk in chunks:
            problems.add(chunk.failed)
            if chunk.paths:
                yield chunk
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ScoreError(
            "a loader process died, most often for want of memory: try a smaller --batch-size, or --workers 0"
        ) from error


def progress_bar(console: Console) -> Progress:
    """A count of images on a terminal, nothing elsewhere."""
    return Progress(
        TextColumn("{task.description} {task.completed:,} images"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not is_live(console),
    )
