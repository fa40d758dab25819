"""Streams images out of WebDataset shards in constant memory: shuffled for training, in order otherwise."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, islice
from random import Random

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from dualscore.data.datamodule import (
    Batch,
    Batching,
    ImageDataModule,
    MeasuredBatches,
    check_positions,
    worker_place,
)
from dualscore.data.epoch_plan import EpochPlan, Piece, evenly_placed, locate
from dualscore.data.loader import Loader
from dualscore.data.shard_file import BLOCK, FAULTS, Entry, Rows, ShardFile, positions, unreadable
from dualscore.data.shards import Manifest, Shard
from dualscore.data.source import Source, local_folder
from dualscore.errors import DataError, SourceError

ATTEMPTS = 64
"""Images tried in one's place: if half of a data set is lost, all of them fail once in 10¹⁹ times."""


class Lane:
    """The images of a lane in shuffled order; only what the shuffle buffer holds is in memory."""

    def __init__(self, source: Source, pieces: list[Piece], rows: Rows, buffer: int, random: Random) -> None:
        self._source, self._pieces, self._rows = source, pieces, rows
        self._file: ShardFile | None = None
        self._shard: Shard | None = None
        self._waiting: list[list[Entry]] = [[]]  # drawn in by the shuffle, not yet read; runs of neighbours
        shuffle = webdataset.shuffle(buffer, initial=buffer, rng=random)
        self._order: Iterator[Entry] = shuffle(self._arrivals())

    def _arrivals(self) -> Iterator[Entry]:
        for piece in self._pieces:
            self._waiting.append([])
            for number in range(piece.start, piece.stop):
                entry = Entry(piece.shard, number)
                self._waiting[-1].append(entry)
                yield entry

    def skip(self, count: int) -> None:
        """Leave the next images out, unread. To be called before any are taken."""
        gone = set(islice(self._order, count))
        left = [[entry] for run in self._waiting for entry in run if entry not in gone]
        self._waiting = [*left, []]

    def take(self, count: int) -> list[Entry]:
        """The next images, read; as many as are left where these are fewer."""
        wanted = list(islice(self._order, count))
        for run in filter(None, self._waiting):
            self._read(run)
        self._waiting = [[]]
        return wanted

    def _read(self, entries: list[Entry]) -> None:
        """Read neighbours in a shard; the headers of those that cannot be read are left empty."""
        views = [self._rows.view(entry) for entry in entries]
        file = self._opened(entries[0].shard)
        try:
            if file is not None:
                file.read(entries[0].number, views)
                return
        except DataError:
            if len(entries) > 1:  # one by one, to lose no more than must be
                for entry in entries:
                    self._read([entry])
                return
        for view in views:
            view[:BLOCK] = 0

    def _opened(self, shard: Shard) -> ShardFile | None:
        """A shard, or None if it cannot be opened."""
        if self._shard is not shard:
            self.close()
            self._shard = shard
            try:
                self._file = ShardFile(self._source, shard, self._rows.image_bytes)
            except SourceError:
                raise
            except DataError:
                self._file = None
        return self._file

    def close(self) -> None:
        """Close the shard that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


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
        plan, each = self.plan, self.plan.batch_size // self.plan.streams
        buffer = max(1, self.shuffle_buffer // plan.streams)
        # DataLoader takes batches from its processes in turn, beginning with the first one at `start`.
        groups = [g for g in range(plan.groups) if (g - self.start) % workers == worker]
        # While it fills, webdataset's buffer draws in two images for each that it gives.
        needed = len(groups) * len(self.streams) * (buffer + each + 1)
        rows = Rows(min(needed, plan.images), self.shape)
        with ExitStack() as stack:
            lanes = {
                g: [
                    Lane(self.source, plan.lane(g, s), rows, buffer, plan.shuffler(g, s))
                    for s in self.streams
                ]
                for g in groups
            }
            for lane in (lane for group in lanes.values() for lane in group):
                stack.enter_context(closing(lane))
            for number in range(plan.batches):
                group = lanes.get(number % plan.groups, [])
                if number < self.start:
                    for lane in group:
                        lane.skip(each)
                elif group:
                    yield rows.batch([entry for lane in group for entry in lane.take(each)], self._replace)

    def _replace(self, entry: Entry, view: NDArray[np.uint8], fault: int) -> int:  # noqa: ARG002
        """Read another image of the epoch, drawn by the seed, the epoch and the lost image's place alone.

        So the same damage gives the same batches, on any number of devices and after any interruption.
        """
        shards, image_bytes = self.plan.shards, math.prod(self.shape)
        lost = sum(shard.images for shard in shards[: shards.index(entry.shard)]) + entry.number
        for position in islice(self.plan.substitutes(lost), ATTEMPTS):
            shard, number = locate(shards, position)
            try:
                with closing(ShardFile(self.source, shard, image_bytes)) as file:
                    file.read(number, [view])
            except SourceError:
                raise
            except DataError:
                continue
            if not positions(view[None, :BLOCK], image_bytes)[1].any():
                return lost
        problem = f"entry {entry.number} cannot be read, nor any of {ATTEMPTS} others in its place"
        raise unreadable(self.source, entry.shard, problem)


@dataclass(eq=False)
class EvenlySpacedBatches(MeasuredBatches):
    """Each of `count` evenly spaced images of a split exactly once over all devices and loader processes."""

    source: Source
    shape: tuple[int, int, int]
    shards: tuple[Shard, ...]
    count: int
    batch_size: int
    place: tuple[int, int] = (0, 1)
    workers: int = 0
    within: range | None = None
    """Positions of the images that are chosen from; None for all."""

    def __post_init__(self) -> None:
        within = self.within or range(sum(shard.images for shard in self.shards))
        self._first, self._total = within.start, len(within)
        self.count = min(self.count, self._total)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in the images' order."""
        rows = Rows(self.batch_size, self.shape)
        entries = self._read(rows)
        while some := list(islice(entries, self.batch_size)):
            batch = rows.batch(some, self._refuse)
            yield batch._replace(ordinal=(batch.position - self._first) * self.count // self._total)

    def _read(self, rows: Rows) -> Iterator[Entry]:
        ends = list(accumulate(shard.images for shard in self.shards))
        chosen = range(*self.range_of(worker_place()[0]))
        places = (self._first + evenly_placed(index, self.count, self._total) for index in chosen)
        for index, group in groupby(places, lambda place: bisect_right(ends, place)):
            shard = self.shards[index]
            with closing(ShardFile(self.source, shard, rows.image_bytes)) as file:
                for place in group:
                    entry = Entry(shard, place - ends[index] + shard.images)
                    file.read(entry.number, [rows.view(entry)])
                    yield entry

    def _refuse(self, entry: Entry, _: NDArray[np.uint8], fault: int) -> int:
        raise unreadable(self.source, entry.shard, f"entry {entry.number} {FAULTS[fault]}")


class ShardDataModule(ImageDataModule):
    """Batches from shards; `training` are the positions of the training images that are used, all if None."""

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        batching: Batching,
        *,
        shuffle_buffer: int,
        training: range | None = None,
    ) -> None:
        super().__init__(batching)
        self.source, self.manifest, self.training = source, manifest, training
        self.shuffle_buffer = shuffle_buffer
        self.dataset, self.release, self.path = manifest.dataset, manifest.release, source
        self.identity = hashlib.sha256(f"{manifest.splits}{training or ''}".encode()).hexdigest()
        self.counts = manifest.images | ({} if training is None else {"train": len(training)})
        self.training_shards = manifest.splits["train"].shards
        if self.batches < 1:
            raise DataError(
                f"{source}: {self.counts['train']} training images are too few for "
                f"data.batch_size={batching.batch_size} with data.workers={batching.workers}; "
                "lower one of them"
            )

    def _plan(self, epoch: int) -> EpochPlan:
        batching, groups = self.batching, max(1, self.batching.workers)
        return EpochPlan(
            self.training_shards, batching.batch_size, batching.streams, groups, batching.seed, epoch,
            self.training,
        )  # fmt: skip

    def photographs(self, split: str, positions: Tensor) -> Tensor | None:
        """Which photograph images are of; see `ImageDataModule`."""
        check_positions(split, positions, self.manifest.splits[split].images)
        if self.manifest.photographs is None:
            return None
        if self.manifest.photographs.each_image:
            return positions.clone()
        return self._numbers[split][positions.cpu()].to(positions)

    @cached_property
    def _numbers(self) -> dict[str, Tensor]:
        """For each split, the number of each image's photograph."""
        assert self.manifest.photographs is not None
        numbers = self.manifest.photographs.load(local_folder(self.source), self.manifest.images)
        return {split: torch.from_numpy(array) for split, array in numbers.items()}

    @property
    def statistics_images(self) -> int:
        """How many images the manifest's statistics are of."""
        return self.manifest.statistics.images

    @property
    def batches(self) -> int:
        """Global training batches in an epoch."""
        return self._plan(0).batches

    def epoch_loader(self, epoch: int, start: int) -> Loader:
        """This device's part of an epoch's global batches, from batch `start` on."""
        streams, shape = self.device_streams(), self.manifest.image_shape
        batches = TrainingBatches(self.source, shape, self._plan(epoch), streams, self.shuffle_buffer, start)
        return self.training_loader(batches, start)

    def evenly_spaced(
        self, split: str, count: int, batch_size: int, place: tuple[int, int] = (0, 1), workers: int = 0
    ) -> Loader:
        """`count` evenly spaced images of a split, in order, each once; see `ImageDataModule`."""
        shards = self.manifest.splits[split].shards
        shape = self.manifest.image_shape
        dataset = EvenlySpacedBatches(
            self.source, shape, shards, count, batch_size, place, workers,
            within=self.training if split == "train" else None,
        )  # fmt: skip
        if dataset.count < place[1]:
            few = f"{dataset.count} {split} images"
            raise DataError(f"{self.source}: {few} are too few for {place[1]} devices")
        return dataset.loader()
