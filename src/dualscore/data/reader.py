"""Streams images out of WebDataset shards, in constant memory."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dualscore.data.plan import EpochPlan, Piece, chosen, cut, share, whole
from dualscore.data.shard_file import BLOCK, ShardFile, positions, row_bytes
from dualscore.shards import Shard


class Batch(NamedTuple):
    """Images and which they are."""

    image: Tensor
    """uint8, shape (B, C, H, W), as stored."""
    position: Tensor
    """Place in the split, int64, shape (B,)."""
    ordinal: Tensor
    """Place among the images that are read, int64, shape (B,); the position where all of a split are."""


class Memory:
    """Rows for images on their way from shards to batches.

    Args:
        rows: how many.
        shape: image shape (C, H, W).
    """

    def __init__(self, rows: int, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.image_bytes = int(np.prod(shape))
        self._rows = np.empty((rows, row_bytes(self.image_bytes)), np.uint8)
        self._views = list(self._rows)
        self._origin: list[tuple[ShardFile, int]] = [None] * rows  # type: ignore[list-item]
        self._free = list(range(rows))

    def read(self, file: ShardFile, first: int, count: int) -> list[int]:
        """Read successive images of a shard; the rows that hold them."""
        cut = len(self._free) - count
        slots, self._free = self._free[cut:], self._free[:cut]
        views, origin = self._views, self._origin
        file.read(first, [views[slot] for slot in slots])
        for number, slot in enumerate(slots, start=first):
            origin[slot] = (file, number)
        return slots

    def batch(self, slots: list[int], count: int = 1, total: int = 1, first: int = 0) -> Batch:
        """Copy rows into a batch and free them.

        Args:
            slots: the rows.
            count: how many images were chosen, evenly spaced.
            total: of how many.
            first: position of the first of these.

        Returns:
            The batch.
        """
        rows = self._rows[slots]
        self._free += slots
        position, faults = positions(rows[:, :BLOCK], self.image_bytes)
        if faults.any():
            file, number = self._origin[slots[int(faults.argmax())]]
            raise file.wrong(number, int(faults[faults.argmax()]))
        pixels = torch.from_numpy(rows)[:, BLOCK : BLOCK + self.image_bytes]
        places = torch.from_numpy(position)
        return Batch(pixels.view(-1, *self.shape), places, (places - first) * count // total)


class Lane:
    """The images of a lane in shuffled order; only what the shuffle buffer holds is in memory.

    Args:
        folder: where the shards are.
        pieces: what the lane reads, in order.
        memory: where its images are kept.
        buffer: images held for shuffling.
        random: the shuffle's random numbers.
    """

    def __init__(
        self, folder: Path, pieces: list[Piece], memory: Memory, buffer: int, random: Random
    ) -> None:
        self._folder, self._pieces, self._memory = folder, pieces, memory
        self._starts = [0, *accumulate(piece.stop - piece.start for piece in pieces)]
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
                if self._open is None or self._open.shard is not piece.shard:
                    self.close()
                    self._open = ShardFile(self._folder, piece.shard, self._memory.image_bytes)
                slots = self._memory.read(self._open, piece.start + start - first, end - start)
                self._slots.update(zip(range(start, end), slots, strict=True))
                start = end
        self._waiting.clear()

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


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class TrainingBatches(IterableDataset[Batch]):
    """A device's part of every global batch of an epoch, from a given batch on.

    Args:
        folder: where the shards are.
        shape: image shape (C, H, W).
        plan: the epoch; each of W loader processes reads its share of the groups, a multiple of W.
        streams: the device's streams.
        shuffle_buffer: images held for shuffling, over all streams.
        start: batches of the epoch to leave out, because they were seen before an interruption.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        plan: EpochPlan,
        streams: range,
        shuffle_buffer: int,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.folder, self.shape, self.plan, self.streams = folder, shape, plan, streams
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
        memory = Memory(min(rows, self.plan.images), self.shape)
        lanes = {
            g: [
                Lane(self.folder, self.plan.lane(g, s), memory, self.buffer, self.plan.shuffler(g, s))
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
        folder: where the shards are.
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
        folder: Path,
        shape: tuple[int, int, int],
        shards: tuple[Shard, ...],
        count: int,
        batch_size: int,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        within: range | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.shape, self.shards = folder, shape, shards
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
            with ShardFile(self.folder, piece.shard, memory.image_bytes) as file:
                for number in range(piece.start, piece.stop):
                    if chosen(place, self.count, self.total):
                        yield from memory.read(file, number, 1)
                    place += 1
