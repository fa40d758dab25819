"""What takes the place of training images that cannot be read, and how they are counted."""

from bisect import bisect_right
from collections import Counter
from itertools import accumulate, islice

import numpy as np
from numpy.typing import NDArray

from dualscore.data.epoch_plan import EpochPlan
from dualscore.data.shard_file import BLOCK, ShardFile, positions
from dualscore.data.shards import Shard
from dualscore.data.source import Source
from dualscore.errors import DataError, SourceError

ATTEMPTS = 64
"""Images tried in one's place: if half of a data set is lost, all of them fail once in 10¹⁹ times."""


class RandomSubstitutes:
    """Any other image of the epoch, drawn by the seed, the epoch and the lost image's place alone.

    So the same damage gives the same batches, on any number of devices and after any interruption.
    """

    def __init__(self, source: Source, plan: EpochPlan, image_bytes: int) -> None:
        self._source, self._plan, self._image_bytes = source, plan, image_bytes
        self._starts = starts(plan.shards)
        self._numbers = {shard.file: index for index, shard in enumerate(plan.shards)}

    def fill(self, row: NDArray[np.uint8], shard: Shard, number: int) -> int:
        """Read another image into a row; returns the lost image's place in the split."""
        lost = self._starts[self._numbers[shard.file]] + number
        for position in islice(self._plan.substitutes(lost), ATTEMPTS):
            index = bisect_right(self._starts, position) - 1
            if self._read(row, self._plan.shards[index], position - self._starts[index]):
                return lost
        raise DataError(
            f"{self._source}/{shard.file}: entry {number} cannot be read, nor any of {ATTEMPTS} others "
            "in its place; verify the data set with make verify-data, or prepare it again"
        )

    def _read(self, row: NDArray[np.uint8], shard: Shard, number: int) -> bool:
        try:
            with ShardFile(self._source, shard, self._image_bytes, whole=False) as file:
                file.read(number, [row])
        except SourceError:
            raise
        except DataError:
            return False
        return not positions(row[None, :BLOCK], self._image_bytes)[1].any()


def starts(shards: tuple[Shard, ...]) -> list[int]:
    """The place in the split of each shard's first image."""
    return [0, *accumulate(shard.images for shard in shards)][:-1]


class SkipCount:
    """Which training images of an epoch could not be read."""

    def __init__(self, shards: tuple[Shard, ...]) -> None:
        self._shards, self._starts = shards, starts(shards)
        self.epoch = 0
        self.positions: list[int] = []

    def begin(self, epoch: int) -> None:
        """Forget the epochs before this one."""
        if epoch > self.epoch:
            self.epoch, self.positions = epoch, []

    def add(self, epoch: int, position: int) -> tuple[str, int]:
        """Count an unreadable image of an epoch; returns its shard's file and its number there."""
        self.begin(epoch)
        self.positions.append(position)
        return self._where(position)

    def of(self, file: str) -> int:
        """Unreadable images of a shard."""
        return self._counts()[file]

    def worst(self) -> tuple[str, int]:
        """The shard with the most unreadable images, and how many."""
        return self._counts().most_common(1)[0]

    def _counts(self) -> Counter[str]:
        return Counter(self._where(position)[0] for position in self.positions)

    def _where(self, position: int) -> tuple[str, int]:
        index = bisect_right(self._starts, position) - 1
        return self._shards[index].file, position - self._starts[index]
