"""Which images are read, where and in which order: pure functions of the manifest and the seed.

An epoch is one permutation of all shards, laid end to end and cut into equal *lanes*, ranges of images of
one length. A global batch takes the same number of images from each of `streams` lanes, so it is the same
batch whatever the number of devices; device r of R reads `streams`/R of them. With W loader processes a
device there are W groups of lanes, and batch b comes from group b mod W.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dualscore.shards import Shard


@dataclass(frozen=True)
class Piece:
    """Images `start` to `stop` (excluded) of one shard, counted within it."""

    shard: Shard
    start: int
    stop: int


def cut(shards: Sequence[Shard], start: int, stop: int) -> list[Piece]:
    """The pieces of shards that hold images `start` to `stop` (excluded) of the shards laid end to end."""
    pieces = []
    first = 0
    for shard in shards:
        low, high = max(start - first, 0), min(stop - first, shard.images)
        if low < high:
            pieces.append(Piece(shard, low, high))
        first += shard.images
    return pieces


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """The range of `total` things that falls to `part` of `parts`; sizes differ by one at most."""
    return total * part // parts, total * (part + 1) // parts


def chosen(index: int, count: int, total: int) -> bool:
    """Whether image `index` is among `count` evenly spaced ones of `total`; exactly `count` are."""
    return (index + 1) * count // total > index * count // total


@dataclass(frozen=True)
class EpochPlan:
    """One pass over the training images.

    Args:
        shards: the training shards in the manifest's order.
        batch_size: images in a global batch, a multiple of `streams`.
        streams: lanes a batch draws from.
        groups: groups of lanes, one for each loader process of a device.
        seed: the run's seed.
        epoch: which epoch, from 0.
    """

    shards: tuple[Shard, ...]
    batch_size: int
    streams: int
    groups: int
    seed: int
    epoch: int

    @property
    def images(self) -> int:
        """Images of all shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def batches(self) -> int:
        """Global batches in an epoch; up to `groups` batches of images are left out, others each epoch."""
        lane_length = self.images // (self.groups * self.streams)
        return self.groups * (lane_length // (self.batch_size // self.streams))

    def lane(self, group: int, stream: int) -> list[Piece]:
        """What the lane of a group and a stream reads, in order and before shuffling."""
        order = list(self.shards)
        random.Random(f"shards {self.seed} {self.epoch}").shuffle(order)
        return cut(order, *share(self.images, group * self.streams + stream, self.groups * self.streams))

    def shuffler(self, group: int, stream: int) -> random.Random:
        """The random numbers of a lane's shuffle buffer."""
        return random.Random(f"images {self.seed} {self.epoch} {group} {stream}")

    def substitutes(self, position: int) -> Iterator[int]:
        """Places in the split of images that may stand for one that cannot be read, at random, endlessly."""
        generator = random.Random(f"substitutes {self.seed} {self.epoch} {position}")
        while True:
            yield generator.randrange(self.images)
