"""Streams images out of WebDataset shards, in constant memory."""

import math
from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info

from dualscore.data.batch import Batch, Memory
from dualscore.data.epoch_plan import EpochPlan, chosen, cut, share, whole
from dualscore.data.lane import Lane
from dualscore.data.shard_file import ShardFile
from dualscore.data.shards import Shard
from dualscore.data.source import Source
from dualscore.data.substitutes import RandomSubstitutes


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class TrainingBatches(IterableDataset[Batch]):
    """A device's part of every global batch of an epoch, from a given batch on.

    Another image stands in the place of one that cannot be read, and `Batch.replaced` tells.

    Args:
        source: where the shards are.
        shape: image shape (C, H, W).
        plan: the epoch; each of W loader processes reads its share of the groups, a multiple of W.
        streams: the device's streams.
        shuffle_buffer: images held for shuffling, over all streams.
        start: batches of the epoch to leave out, because they were seen before an interruption.
    """

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int, int],
        plan: EpochPlan,
        streams: range,
        shuffle_buffer: int,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.shape, self.plan, self.streams = source, shape, plan, streams
        self.buffer = max(1, shuffle_buffer // plan.streams)
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches of the epoch in order."""
        worker, workers = _worker()
        each = self.plan.batch_size // self.plan.streams
        # DataLoader takes batches from its processes in turn, beginning with the first one at `start`.
        groups = [g for g in range(self.plan.groups) if (g - self.start) % workers == worker]
        # While it fills, webdataset's buffer draws in two images for each that it gives.
        rows = len(groups) * len(self.streams) * (self.buffer + each + 1)
        substitutes = RandomSubstitutes(self.source, self.plan, math.prod(self.shape))
        memory = Memory(min(rows, self.plan.images), self.shape, substitutes)
        lanes = {
            g: [
                Lane(self.source, self.plan.lane(g, s), memory, self.buffer, self.plan.shuffler(g, s))
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
    """Each of `count` evenly spaced images of a split exactly once over all devices and loader processes.

    Args:
        source: where the shards are.
        shape: image shape (C, H, W).
        shards: the split's shards in order.
        count: how many images.
        batch_size: images a batch.
        part: which device of how many, (rank, world size).
        workers: loader processes of the device.
        within: positions among which the images are chosen; None for the whole split.
    """

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
        low, high = share(self.count, *self.part)
        first, last = share(high - low, worker, self.workers)
        return low + first, low + last

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
        for slot in self._read(memory, *self._images(_worker()[0])):
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
