"""Finds image files and decodes them in batches, in loader processes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dualscore.errors import ScoreError
from dualscore.pictures.photographs import SUFFIXES, UnsuitableError, read_rgb
from dualscore.terminal.hints import did_you_mean

MOST_PIXELS = 2**26
"""Of an image that is to be resized: one of more is taken for a decompression bomb."""
CHUNKS_AHEAD = 2
"""Batches that each loader process decodes ahead."""


class Chunk(NamedTuple):
    """A batch of decoded files."""

    paths: list[str]
    """Of the images, length n."""
    images: Tensor
    """uint8, shape (n, 3, H, W)."""
    failed: list[tuple[str, str]]
    """Files that could not be used, with the reason."""


@dataclass(frozen=True)
class Size:
    """What size images must have.

    Args:
        height: in pixels.
        width: in pixels.
        resize: whether others are cropped to the shape and resized; otherwise they are refused.
        hint: why others are refused, and the way out.
    """

    height: int
    width: int
    resize: bool = False
    hint: str = ""


def check_given(given: Sequence[Path], left_out: Path, hint: str = "") -> None:
    """Refuse names of nothing, and results among the images, before any work.

    Args:
        given: files and folders.
        left_out: where the results go.
        hint: what else to say of what does not exist.

    Raises:
        ScoreError: naming the first one that does not exist, or that the results would go to.
    """
    for path in given:
        if not path.exists():
            raise ScoreError(f"{path}: no such file or folder{_beside(path)}{hint}")
        if path.resolve() == left_out.resolve():
            # Maps written there would be found, and taken for images, while the folder is being read.
            raise ScoreError(f"{path}: holds the images; name another folder for the results")


def _beside(path: Path) -> str:
    """What a name that is not there may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return "" if folder == Path() else f"; there is no folder {folder} either"
    guess = did_you_mean(path.name, os.listdir(folder)).strip()
    return f"; {guess}" if guess else ""


def is_picture(name: str) -> bool:
    """Whether a file in a folder is taken for a picture, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def find(given: Sequence[Path], left_out: Path) -> Iterator[Path]:
    """The files given, and the pictures below the folders given, folder by folder in the order of names.

    Args:
        given: files, taken whatever their names end in, and folders.
        left_out: a folder that is never entered: where the results go.

    Yields:
        Paths; only the names of one folder are held at a time. A folder that cannot be read is one of them,
        so that it is told like a file that cannot.
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
            for name in sorted(names):
                if is_picture(name):
                    yield Path(folder, name)
        yield from unreadable


def decode(path: Path, size: Size) -> NDArray[np.uint8]:
    """Read an image as training data are read.

    Args:
        path: the file.
        size: what is wanted.

    Returns:
        RGB, shape (3, H, W). A resized one is the middle of the image, each pixel the mean of what it
        covers (Pillow's box filter), as the official down-sampled ImageNet and our crops were made.

    Raises:
        ValueError: why the file cannot be used.
    """

    def check(stored: tuple[int, int]) -> None:
        if size.resize:
            if stored[0] * stored[1] > MOST_PIXELS:
                raise UnsuitableError(f"has too many pixels: {stored[0]}×{stored[1]}")
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


def _wrong_size(found: tuple[int, int], size: Size) -> str:
    return f"is {found[0]}×{found[1]}, but wanted are {size.width}×{size.height} images{size.hint}"


def first_size(given: Sequence[Path], left_out: Path) -> tuple[int, int]:
    """Height and width of the first image that can be read.

    Args:
        given: files and folders.
        left_out: a folder that is not entered.

    Returns:
        (H, W) in pixels.

    Raises:
        ScoreError: if there is none.
    """

    def check(stored: tuple[int, int]) -> None:
        if stored[0] * stored[1] > MOST_PIXELS:
            raise UnsuitableError("has too many pixels")

    for path in find(given, left_out):
        if path.is_file():
            try:
                image = read_rgb(path, check)
            except ValueError:
                continue
            return image.height, image.width
    raise ScoreError(f"{given[0]}: no image that can be read ({', '.join(SUFFIXES)})")


class ImageFiles(IterableDataset[Chunk]):
    """Decoded files in batches, shared among loader processes batch by batch, so that the order stays.

    Args:
        given: files and folders.
        left_out: a folder that is not entered.
        size: what size images must have.
        batch_size: files in a batch; of them, those that can be used are in it.
    """

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
    """Decode in processes.

    Args:
        files: what to decode.
        workers: processes; 0 decodes in this one.

    Returns:
        The batches, in order; at most `CHUNKS_AHEAD` a process are held.
    """
    ahead = CHUNKS_AHEAD if workers else None
    return DataLoader(
        files, batch_size=None, num_workers=workers, prefetch_factor=ahead, collate_fn=_as_it_is
    )


def _as_it_is(chunk: Any) -> Any:  # noqa: ANN401 - PyTorch's signature
    return chunk
