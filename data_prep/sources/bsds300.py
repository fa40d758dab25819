"""8×8 patches of BSDS300 by the protocol of density models: so many at random of each photograph."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.plan import Images, Plan, Request, Source, Table, Unit, even_cuts
from data_prep.pool import stop_if_told
from data_prep.sources.bsds500 import NAMES, files_of, photographs_of, split_of
from data_prep.sources.folder import look, select, told
from data_prep.sources.photographs import Photograph, read_again
from dualscore.errors import DataError

ARCHIVES = (*NAMES, "BSDS300-images.tgz", "BSDS300-images.tar.gz", "BSDS300-images.tar")
"""BSDS500's archive, whose first 300 photographs these are, and their own."""
PATCHES = {"train": 1_000_000, "val": 50_000, "test": 250_000}
"""Of all photographs of a split together, as in the files of Papamakarios et al. 2017, arXiv 1705.07057."""
CHOOSING = 20
"""Training photographs that choose instead (Uria, Murray, Larochelle 2013, arXiv 1306.0186)."""
SIZE = 8
TOGETHER = 10  # photographs whose patches are shuffled together
RELEASE = "BSDS300 (Martin et al. 2001), 8×8 patches at random, as density models take them"


class Bsds300(Source):
    """The 300 photographs that BSDS500 begins with: its training ones, and its validation ones to test."""

    about = "BSR_bsds500.tgz or BSDS300-images.tgz, or the folder it unpacks to: 8×8 patches at random"
    uses = frozenset({"src", "seed"})

    def find(self, src: Path | None) -> list[Path]:
        """The archive, or the photographs below a folder."""
        return files_of(src, ARCHIVES)

    def plan(self, request: Request) -> Plan:
        """Take 20 of the training photographs, chosen by the seed, to choose by."""
        assert request.src is not None
        assert request.seed is not None
        found = photographs_of(request.src, ARCHIVES)
        held = "val" if any(split_of(photo) == "val" for photo in found) else "test"
        usable, channels, warnings = select(look(found, SIZE, request.workers), request.src)
        learned = [photo for photo in usable if split_of(photo) == "train"]
        tested = [photo for photo in usable if split_of(photo) == held]
        few = min(CHOOSING, len(learned) // 2)
        if not few or not tested:
            raise DataError(f"{request.src} holds no usable photograph to train, choose or test by")
        order = np.random.default_rng([request.seed, 2]).permutation(len(learned))
        splits = {
            "train": [learned[i] for i in order[few:]],
            "val": [learned[i] for i in sorted(order[:few])],
            "test": tested,
        }
        if (len(learned), len(tested)) != (200, 100):
            counts = f"train {len(learned)} of 200; test {len(tested)} of 100"
            warnings = (*warnings, f"not the whole set: {counts} photographs")
        units = [unit for split in splits for unit in _units(split, splits[split], channels, request.seed)]
        source = {"patches": {"size": SIZE, "at": "random places", "seed": request.seed}}
        counts_of = {split: len(photographs) for split, photographs in splits.items()}
        return Plan(
            (channels, SIZE, SIZE),
            RELEASE,
            tuple(units),
            source | {"photographs": counts_of},
            warnings,
            told(splits),
        )


def _units(split: str, photographs: list[Photograph], channels: int, seed: int) -> Iterator["PatchUnit"]:
    each = [last - first for first, last in _shares(PATCHES[split], len(photographs))]
    for first in range(0, len(photographs), TOGETHER):
        some = slice(first, first + TOGETHER)
        total = sum(each[some])
        yield PatchUnit(split, total, tuple(photographs[some]), tuple(each[some]), channels, seed, first)


def _shares(total: int, parts: int) -> list[tuple[int, int]]:
    return even_cuts(total, -(-total // parts))


@dataclass(frozen=True)
class PatchUnit(Unit):
    """Patches at random places of a group of photographs, all at the photographs' own scale, shuffled.

    ``first`` is the number of the first of these photographs among those of the split.
    """

    photographs: tuple[Photograph, ...]
    each: tuple[int, ...]
    channels: int
    seed: int
    first: int

    def _random(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 3, *self.split.encode(), self.first])

    def numbers(self) -> NDArray[np.int32]:
        """Number, in the split, of the photograph that each patch is of: int32, shape (images,)."""
        which = np.repeat(np.arange(len(self.each), dtype=np.int32), self.each)
        return self._random().permutation(which) + np.int32(self.first)

    @contextmanager
    def open(self) -> Iterator[Images]:
        """Decode the photographs and copy every patch."""
        random = self._random()
        order = random.permutation(self.images)
        patches = []
        for photograph, count in zip(self.photographs, self.each, strict=True):
            stop_if_told()
            pixels = np.asarray(read_again(photograph))[..., : self.channels]
            windows = np.lib.stride_tricks.sliding_window_view(pixels, (SIZE, SIZE), axis=(0, 1))
            rows = random.integers(windows.shape[0], size=count)
            patches.append(windows[rows, random.integers(windows.shape[1], size=count)])
        yield Table(np.concatenate(patches)[order])
