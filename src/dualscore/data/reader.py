"""Streams images out of WebDataset shards in constant memory: shuffled for training, in order otherwise."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random

import webdataset
from torch.utils.data import IterableDataset

from dualscore.data.batch import Batch, Memory
from dualscore.data.epoch_plan import EpochPlan, Piece, chosen, cut, share_of_worker, whole
from dualscore.data.shard_file import ShardFile
from dualscore.data.shards import Shard
from dualscore.data.source import Source
from dualscore.data.substitutes import RandomSubstitutes
from dualscore.data.workers import worker_place
from dualscore.errors import DataError, SourceError


class Lane:
    """The images of a lane in shuffled order; only what the shuffle buffer holds is in memory."""

    def __init__(
        self, source: Source, pieces: list[Piece], memory: Memory, buffer: int, random: Random
    ) -> None:
        self._source, self._pieces, self._memory = source, pieces, memory
        self._starts = [0, *accumulate(piece.stop - piece.start for piece in pieces)]
        self._shard: Shard | None = None
        self._open: ShardFile | None = None
        self._waiting: list[int] = []  # images of the lane that the shuffle has drawn in, not yet read
        self._slots: dict[int, int] = {}
        shuffle = webdataset.shuffle(buffer, initial=buffer, rng=random)
        self._order: Iterator[int] = shuffle(self._arrivals())

    def _arrivals(self) -> Iterator[int]:
        for number in range(self._starts[-1]):
            self._waiting.append(number)
            yield number

    def skip(self, count: int) -> None:
        """Leave the next images out, unread. To be called before any are taken."""
        gone = set(islice(self._order, count))
        self._waiting = [number for number in self._waiting if number not in gone]

    def take(self, count: int) -> list[int]:
        """The rows of memory that hold the next images; as many as are left where these are fewer."""
        wanted = list(islice(self._order, count))
        self._read_waiting()
        return [self._slots.pop(number) for number in wanted]

    def _read_waiting(self) -> None:
        for start, stop in _runs(self._waiting):
            while start < stop:
                index = bisect_right(self._starts, start) - 1
                piece, first = self._pieces[index], self._starts[index]
                end = min(stop, self._starts[index + 1])
                slots = self._read(piece, piece.start + start - first, end - start)
                self._slots.update(zip(range(start, end), slots, strict=True))
                start = end
        self._waiting.clear()

    def _read(self, piece: Piece, first: int, count: int) -> list[int]:
        """The rows of memory that hold images of a piece, or are marked as lost where they cannot be read."""
        if (file := self._opened(piece.shard)) is not None:
            try:
                return self._memory.read(file, first, count)
            except DataError:
                if count > 1:  # one by one, to lose no more than must be
                    numbers = range(first, first + count)
                    return [slot for number in numbers for slot in self._read(piece, number, 1)]
        return [self._memory.lose(piece, number) for number in range(first, first + count)]

    def _opened(self, shard: Shard) -> ShardFile | None:
        """A shard, or None if it cannot be opened."""
        if self._shard is not shard:
            self.close()
            self._shard = shard
            try:
                self._open = ShardFile(self._source, shard, self._memory.image_bytes, whole=False)
            except SourceError:
                raise
            except DataError:
                self._open = None
        return self._open

    def close(self) -> None:
        """Close the shard that is open."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of rising numbers without gaps."""
    if not numbers:
        return
    if numbers[-1] - numbers[0] == len(numbers) - 1:  # nearly always
        yield numbers[0], numbers[-1] + 1
        return
    start = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield start, last + 1
            start = number
        last = number
    yield start, last + 1


@dataclass(eq=False)
class TrainingBatches(IterableDataset[Batch]):
    """A device's part of every global batch of an epoch, from a given batch on.

    Another image stands in the place of one that cannot be read, and `Batch.replaced` tells. Each of W loader
    processes reads its share of the plan's groups, a multiple of W.
    """

    source: Source
    shape: tuple[int, int, int]
    plan: EpochPlan
    streams: range
    """This device's."""
    shuffle_buffer: int
    """Images held for shuffling, over all streams."""
    start: int = 0
    """Batches of the epoch to leave out, because they were seen before an interruption."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches of the epoch in order."""
        worker, workers = worker_place()
        each = self.plan.batch_size // self.plan.streams
        buffer = max(1, self.shuffle_buffer // self.plan.streams)
        # DataLoader takes batches from its processes in turn, beginning with the first one at `start`.
        groups = [g for g in range(self.plan.groups) if (g - self.start) % workers == worker]
        # While it fills, webdataset's buffer draws in two images for each that it gives.
        rows = len(groups) * len(self.streams) * (buffer + each + 1)
        substitutes = RandomSubstitutes(self.source, self.plan, math.prod(self.shape))
        memory = Memory(min(rows, self.plan.images), self.shape, substitutes)
        lanes = {
            g: [
                Lane(self.source, self.plan.lane(g, s), memory, buffer, self.plan.shuffler(g, s))
                for s in self.streams
            ]
            for g in groups
        }
        try:
            for number in range(self.plan.batches):
                group = number % self.plan.groups
                if group not in lanes:
                    continue
                if number < self.start:
                    for lane in lanes[group]:
                        lane.skip(each)
                    continue
                yield memory.batch([slot for lane in lanes[group] for slot in lane.take(each)])
        finally:
            for lane in (lane for group in lanes.values() for lane in group):
                lane.close()


class EvenlySpacedBatches(IterableDataset[Batch]):
    """Each of `count` evenly spaced images of a split exactly once over all devices and loader processes."""

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int, int],
        shards: tuple[Shard, ...],
        count: int,
        batch_size: int,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        within: range | None = None,
    ) -> None:
        super().__init__()
        self.source, self.shape, self.shards = source, shape, shards
        within = within or range(sum(shard.images for shard in shards))
        self.first, self.total = within.start, len(within)
        self.count = min(count, self.total)
        self.batch_size, self.part, self.workers = batch_size, part, max(1, workers)

    def _share(self, worker: int) -> tuple[int, int]:
        """The range of chosen images, counted among the chosen, that falls to a loader process."""
        return share_of_worker(self.count, self.part, worker, self.workers)

    def _images(self, worker: int) -> tuple[int, int]:
        """The range of images, counted from the first that could be chosen, in which those lie."""
        first, last = self._share(worker)
        if first == last:
            return 0, 0
        # The j-th chosen image (from 0) is at ⌈(j+1)·total/count⌉ − 1; see `chosen`.
        return -(-(first + 1) * self.total // self.count) - 1, -(-last * self.total // self.count)

    def __len__(self) -> int:
        """Batches this device's loader yields, exactly."""
        shares = [self._share(worker) for worker in range(self.workers)]
        return sum(-(-(last - first) // self.batch_size) for first, last in shares)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in the images' order."""
        memory = Memory(self.batch_size, self.shape)
        slots: list[int] = []
        for slot in self._read(memory, *self._images(worker_place()[0])):
            slots.append(slot)
            if len(slots) == self.batch_size:
                yield memory.batch(slots, self.count, self.total, self.first)
                slots = []
        if slots:
            yield memory.batch(slots, self.count, self.total, self.first)

    def _read(self, memory: Memory, start: int, stop: int) -> Iterator[int]:
        """The rows of memory that hold the chosen images of a range, in order."""
        place = start
        for piece in cut(whole(self.shards), self.first + start, self.first + stop):
            with ShardFile(self.source, piece.shard, memory.image_bytes) as file:
                for number in range(piece.start, piece.stop):
                    if chosen(place, self.count, self.total):
                        yield from memory.read(file, number, 1)
                    place += 1
