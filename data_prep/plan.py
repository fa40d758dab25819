"""What a source promises: independent units of images, and how they are cut into shards."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dualscore.data.photograph_numbers import SplitPhotographs, leak
from dualscore.data.shards import REQUIRED_SPLITS, SPLITS, shard_name
from dualscore.errors import DataError

SHARD_BYTES = 16 * 2**20
SMALLEST_SHARD_COUNT = 8
TAR_BLOCK = 512


@dataclass(frozen=True)
class Request:
    """What the user asks for; an option is None where the data set does not use it.

    All but ``workers``, the number of processes, decide what comes out.
    """

    dataset: str
    src: Path | None
    size: int | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    seed: int | None = None
    images_per_shard: int | None = None
    workers: int = 1


class Images(Protocol):
    """The images of one opened unit, taken in increasing order."""

    def take(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start … stop−1 of the unit, uint8, shape (stop − start, C, H, W)."""
        ...


@dataclass(frozen=True)
class Table:
    """Images that are an array already, uint8, shape (n, C, H, W)."""

    images: NDArray[np.uint8]

    def take(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start … stop−1, uint8, shape (stop − start, C, H, W)."""
        return self.images[start:stop]


@dataclass(frozen=True)
class Unit(ABC):
    """A deterministic piece of a split that one process can produce without the others."""

    split: str
    images: int

    def numbers(self) -> NDArray[np.int32]:
        """Number, in the split, of the photograph that each image is of, where the plan names photographs.

        Returns:
            int32, shape (images,).
        """
        raise NotImplementedError

    @abstractmethod
    def open(self) -> AbstractContextManager[Images]:
        """Open what the images are read from."""


EACH_IMAGE: Mapping[str, SplitPhotographs] = MappingProxyType({})


@dataclass(frozen=True)
class Plan:
    """Everything a source will produce; the units of a split follow one another in order.

    ``image_shape`` is (C, H, W). ``source`` and ``warnings`` go into the manifest; the latter are shown too.
    ``photographs`` are each split's, EACH_IMAGE where every image is a photograph of its own, and None where
    nobody knows which one an image is of.
    """

    image_shape: tuple[int, int, int]
    release: str
    units: tuple[Unit, ...]
    source: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())
    photographs: Mapping[str, SplitPhotographs] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split that has any."""
        counts = {split: sum(unit.images for unit in self.units if unit.split == split) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}


def check_splits(plan: Plan, request: Request) -> None:
    """Refuse a plan without images to train on or to validate on, or with a photograph in two splits.

    Args:
        plan: what a source would produce.
        request: what was asked for.

    Raises:
        DataError: naming the source, and the photograph or the split.
    """
    for split in REQUIRED_SPLITS:
        if split not in plan.counts:
            raise DataError(f"{request.src} gives no {split} image: check --src")
    if plan.photographs and (problem := leak(plan.photographs)) is not None:
        raise DataError(f"{request.src or request.dataset}: {problem}; delete one of the two files")


class Source(ABC):
    """A kind of input; ``uses`` names the options it takes: src, size, val_fraction, test_fraction, seed."""

    uses: ClassVar[frozenset[str]]

    @property
    @abstractmethod
    def about(self) -> str:
        """What it is made from, in a line of the help."""

    @abstractmethod
    def find(self, src: Path | None) -> list[Path]:
        """The input files, in a fixed order, without reading them; DataError if there are none."""

    @abstractmethod
    def plan(self, request: Request) -> Plan:
        """Look into the files just enough to know how many images come from where."""


@dataclass(frozen=True)
class ShardJob:
    """One shard: images start … stop−1 of its unit, the first of which has index ``first`` in the split."""

    file: str
    split: str
    first: int
    start: int
    stop: int


def lay_out(plan: Plan, images_per_shard: int | None = None) -> list[tuple[Unit, list[ShardJob]]]:
    """Cut each unit into shards of nearly equal size.

    By default a shard takes about 16 MB, and less where a split would have fewer than 8 shards otherwise: an
    epoch permutes shards, which means little when there are only a few.
    """
    layout = []
    for split in SPLITS:
        units = [unit for unit in plan.units if unit.split == split]
        total = sum(unit.images for unit in units)
        most = images_per_shard or _default_images_per_shard(plan.image_shape, total)
        first = number = 0
        for unit in units:
            jobs = []
            for start, stop in even_cuts(unit.images, most):
                jobs.append(ShardJob(shard_name(split, number), split, first + start, start, stop))
                number += 1
            first += unit.images
            layout.append((unit, jobs))
    return layout


def even_cuts(total: int, most: int) -> list[tuple[int, int]]:
    """Cut range(total) into the fewest nearly equal pieces of at most ``most``, as (start, stop)."""
    if total == 0:
        return []
    pieces = -(-total // most)
    return list(pairwise(total * piece // pieces for piece in range(pieces + 1)))


def _default_images_per_shard(image_shape: tuple[int, int, int], total: int) -> int:
    blocks = -(-int(np.prod(image_shape)) // TAR_BLOCK) + 1
    return max(1, min(SHARD_BYTES // (blocks * TAR_BLOCK), -(-total // SMALLEST_SHARD_COUNT)))
