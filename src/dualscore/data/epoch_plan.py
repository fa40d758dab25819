"""Which images are read, where and in which order: pure functions of the manifest and the seed.

An epoch is one permutation of all shards, laid end to end and cut into equal *lanes*, ranges of images of
one length. A global batch takes the same number of images from each of `streams` lanes, so it is the same
batch whatever the number of devices; device r of R reads `streams`/R of them. With W loader processes a
device there are W groups of lanes, and batch b comes from group b mod W.

Where only some of the training images are used, an epoch lays them end to end as often as it takes to reach
`SHORTEST_EPOCH` images, and permutes all of these pieces: ten images too fill a batch (each then is in it
several times), and loader processes do not start anew every few steps.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dualscore.data.shards import Shard

SHORTEST_EPOCH = 2**16
"""Images of an epoch over a part of the training images, at least; a batch or more in any case."""


@dataclass(frozen=True)
class Piece:
    """Images `start` to `stop` (excluded) of one shard, counted within it."""

    shard: Shard
    start: int
    stop: int


def whole(shards: Sequence[Shard]) -> list[Piece]:
    """Every shard as one piece."""
    return [Piece(shard, 0, shard.images) for shard in shards]


def cut(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """What holds images `start` to `stop` (excluded) of the pieces laid end to end."""
    found = []
    first = 0
    for piece in pieces:
        images = piece.stop - piece.start
        low, high = max(start - first, 0), min(stop - first, images)
        if low < high:
            found.append(Piece(piece.shard, piece.start + low, piece.start + high))
        first += images
    return found


def locate(shards: Sequence[Shard], position: int) -> tuple[Shard, int]:
    """The shard that holds the image at a position of the split, and the image's number in it."""
    (piece,) = cut(whole(shards), position, position + 1)
    return piece.shard, piece.start


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """The range of `total` things that falls to `part` of `parts`; sizes differ by one at most."""
    return total * part // parts, total * (part + 1) // parts


def share_of_worker(total: int, place: tuple[int, int], worker: int, workers: int) -> tuple[int, int]:
    """The range of `total` things for a loader process of the device at `place`, (rank, world size)."""
    low, high = share(total, *place)
    first, last = share(high - low, worker, workers)
    return low + first, low + last


def evenly_placed(index: int, count: int, total: int) -> int:
    """Place of the image `index`, from 0, of `count` evenly spaced ones among `total`."""
    return -(-(index + 1) * total // count) - 1


@dataclass(frozen=True)
class EpochPlan:
    """One pass over the training images."""

    shards: tuple[Shard, ...]
    batch_size: int
    """Images in a global batch, a multiple of `streams`."""
    streams: int
    """Lanes that a batch draws from."""
    groups: int
    """Groups of lanes, one for each loader process of a device."""
    seed: int
    epoch: int
    within: range | None = None
    """Positions of the training images that are used, repeated if few; None for all, each once."""

    @property
    def repeats(self) -> int:
        """How often an epoch lays the used images end to end."""
        if self.within is None:
            return 1
        return -(-max(SHORTEST_EPOCH, self.groups * self.batch_size) // len(self.within))

    @property
    def images(self) -> int:
        """Images of an epoch, repeated ones as often as they are laid out."""
        used = sum(shard.images for shard in self.shards) if self.within is None else len(self.within)
        return self.repeats * used

    @property
    def batches(self) -> int:
        """Global batches in an epoch; up to `groups` batches of images are left out, others each epoch."""
        lane_length = self.images // (self.groups * self.streams)
        return self.groups * (lane_length // (self.batch_size // self.streams))

    def lane(self, group: int, stream: int) -> list[Piece]:
        """What the lane of a group and a stream reads, in order and before shuffling."""
        order = whole(self.shards)
        if self.within is not None:
            order = cut(order, self.within.start, self.within.stop) * self.repeats
        random.Random(f"shards {self.seed} {self.epoch}").shuffle(order)
        return cut(order, *share(self.images, group * self.streams + stream, self.groups * self.streams))

    def shuffler(self, group: int, stream: int) -> random.Random:
        """The random numbers of a lane's shuffle buffer."""
        return random.Random(f"images {self.seed} {self.epoch} {group} {stream}")

    def substitutes(self, position: int) -> Iterator[int]:
        """Places in the split of images that may stand for one that cannot be read, at random, endlessly."""
        generator = random.Random(f"substitutes {self.seed} {self.epoch} {position}")
        within = self.within or range(self.images)
        while True:
            yield within[generator.randrange(len(within))]
