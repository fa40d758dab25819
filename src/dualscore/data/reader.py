"""Streams images out of WebDataset shards, in constant memory."""

import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dualscore.data.plan import EpochPlan, Piece, chosen, cut, share
from dualscore.errors import DataError
from dualscore.shards import IMAGE_SUFFIX, Shard


class Batch(NamedTuple):
    """Images and which they are."""

    image: Tensor
    """uint8, shape (B, C, H, W), as stored."""
    position: Tensor
    """Place in the split, int64, shape (B,)."""
    ordinal: Tensor
    """Place among the images that are read, int64, shape (B,); the position where all are."""


class Sample(NamedTuple):
    """One image as stored: its place in the split and its raw bytes."""

    position: int
    pixels: bytes


def read_piece(folder: Path, piece: Piece, image_bytes: int) -> Iterator[Sample]:
    """Read a range of one shard.

    Args:
        folder: where the shards are.
        piece: the shard and the range.
        image_bytes: size of an image, C·H·W.

    Yields:
        The images in order.

    Raises:
        DataError: naming the shard, if it is missing, damaged, or disagrees with the manifest.
    """
    path = folder / piece.shard.file
    again = "verify the data set with make verify-data, or prepare it again"
    count = piece.start
    try:
        with path.open("rb") as stream:
            samples = webdataset.tarfile_to_samples()([{"url": str(path), "stream": stream}])
            for sample in islice(samples, piece.start, piece.stop):
                pixels = sample.get(IMAGE_SUFFIX.removeprefix("."))
                if pixels is None or not sample["__key__"].isdecimal():
                    raise DataError(f"{path}: entry {sample['__key__']!r} is not an image; {again}")
                if len(pixels) != image_bytes:
                    raise DataError(
                        f"{path}: image {sample['__key__']} has {len(pixels)} bytes instead of "
                        f"{image_bytes}; {again}"
                    )
                yield Sample(int(sample["__key__"]), pixels)
                count += 1
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read after {count} images ({error}); {again}") from error
    if count != piece.stop:
        raise DataError(f"{path}: ends after {count} of its {piece.shard.images} images; {again}")


def read_pieces(folder: Path, pieces: Iterable[Piece], image_bytes: int) -> Iterator[Sample]:
    """Read ranges of shards one after the other; see `read_piece`."""
    for piece in pieces:
        yield from read_piece(folder, piece, image_bytes)


def collate(samples: list[Sample], shape: tuple[int, int, int], count: int = 1, total: int = 1) -> Batch:
    """Stack stored images of one shape (C, H, W), chosen evenly as `count` of `total`, into a batch."""
    stacked = np.frombuffer(bytearray(b"".join(s.pixels for s in samples)), np.uint8)
    image = torch.from_numpy(stacked).view(len(samples), *shape)
    position = torch.tensor([s.position for s in samples], dtype=torch.int64)
    return Batch(image, position, position * count // total)


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

    def _lane(self, group: int, stream: int) -> Iterator[Sample]:
        pieces = self.plan.lane(group, stream)
        samples = read_pieces(self.folder, pieces, int(np.prod(self.shape)))
        shuffle = webdataset.shuffle(self.buffer, initial=self.buffer, rng=self.plan.shuffler(group, stream))
        shuffled: Iterator[Sample] = shuffle(samples)
        return shuffled

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches of the epoch in order."""
        worker, workers = _worker()
        each = self.plan.batch_size // self.plan.streams
        # DataLoader takes batches from its processes in turn, beginning with the first one at `start`.
        groups = [g for g in range(self.plan.groups) if (g - self.start) % workers == worker]
        lanes = {g: [self._lane(g, s) for s in self.streams] for g in groups}
        for number in range(self.plan.batches):
            group = number % self.plan.groups
            if group not in lanes:
                continue
            samples = [sample for lane in lanes[group] for sample in islice(lane, each)]
            if number >= self.start:
                yield collate(samples, self.shape)


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
    ) -> None:
        super().__init__()
        self.folder, self.shape, self.shards = folder, shape, shards
        self.total = sum(shard.images for shard in shards)
        self.count = min(count, self.total)
        self.batch_size, self.part, self.workers = batch_size, part, max(1, workers)

    def _share(self, worker: int) -> tuple[int, int]:
        """The range of chosen images, counted among the chosen, that falls to a loader process."""
        low, high = share(self.count, *self.part)
        first, last = share(high - low, worker, self.workers)
        return low + first, low + last

    def _images(self, worker: int) -> tuple[int, int]:
        """The range of positions in which those lie."""
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
        pieces = cut(self.shards, *self._images(_worker()[0]))
        samples = read_pieces(self.folder, pieces, int(np.prod(self.shape)))
        kept = (s for s in samples if chosen(s.position, self.count, self.total))
        while batch := list(islice(kept, self.batch_size)):
            yield collate(batch, self.shape, self.count, self.total)
