"""Images drawn from a known density: endless training data, and the truth beside every estimate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dualscore.data.base import Batching, ImageDataModule, check_positions, make_loader
from dualscore.data.batch import Batch
from dualscore.data.epoch_plan import share_of_worker
from dualscore.data.workers import worker_place
from dualscore.densities import GaussianMixture
from dualscore.noise import SAMPLING, seeded_generator

EPOCH_IMAGES = 2**17
"""Training images in what is called an epoch; the next one has new images."""
SPLIT_IMAGES = {"train": 2**17, "val": 2**17, "test": 2**17}
BLOCK = 64
"""Measured images are drawn in blocks of this many, so that each depends on its position alone."""
_SPLITS = {"train": 1, "val": 2, "test": 3}


def draw_images(density: GaussianMixture, count: int, quantized: bool, generator: torch.Generator) -> Tensor:
    """Draw images, shape (count, C, H, W): float32, or uint8 of those within [0, 1] if quantized."""
    images = density.sample(count, generator)
    if not quantized:
        return images
    while bool((outside := ((images < 0) | (images > 1)).flatten(1).any(dim=1)).any()):
        images[outside] = density.sample(int(outside.sum()), generator)
    return (255.0 * images).round().to(torch.uint8)


@dataclass(eq=False)
class TrainingDraws(IterableDataset[Batch]):
    """A device's part of the global batches of an epoch, drawn afresh for it, from batch `start` on."""

    density: GaussianMixture
    quantized: bool
    batches: int
    each: int
    """Images of a stream in a batch."""
    streams: range
    """This device's."""
    total: int
    """Streams of all devices."""
    key: tuple[int, int]
    """The run's seed and the epoch."""
    start: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in order."""
        worker, workers = worker_place()
        cpu = torch.device("cpu")
        for number in range(self.start + worker, self.batches, workers):
            images = [
                draw_images(
                    self.density,
                    self.each,
                    self.quantized,
                    seeded_generator(cpu, SAMPLING, *self.key, number, stream),
                )
                for stream in self.streams
            ]
            first = (number * self.total + self.streams.start) * self.each
            position = torch.arange(first, first + self.each * len(self.streams))
            yield Batch(torch.cat(images), position, position, torch.full_like(position, -1))


@dataclass(eq=False)
class MeasuredDraws(IterableDataset[Batch]):
    """The first `count` images of a split, a device's share of them; the same for every run and seed."""

    density: GaussianMixture
    quantized: bool
    split: str
    count: int
    batch_size: int
    place: tuple[int, int]
    """Which device of how many."""
    workers: int

    def _range(self, worker: int) -> tuple[int, int]:
        return share_of_worker(self.count, self.place, worker, max(1, self.workers))

    def __len__(self) -> int:
        """Batches this device's loader yields, exactly."""
        ranges = [self._range(worker) for worker in range(max(1, self.workers))]
        return sum(-(-(last - first) // self.batch_size) for first, last in ranges)

    def _block(self, number: int) -> Tensor:
        generator = seeded_generator(torch.device("cpu"), SAMPLING, -_SPLITS[self.split], number)
        return draw_images(self.density, BLOCK, self.quantized, generator)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in the images' order."""
        first, last = self._range(worker_place()[0])
        for start in range(first, last, self.batch_size):
            stop = min(start + self.batch_size, last)
            blocks = range(start // BLOCK, (stop - 1) // BLOCK + 1)
            images = torch.cat([self._block(number) for number in blocks])
            offset = start - blocks.start * BLOCK
            position = torch.arange(start, stop)
            chosen = images[offset : offset + stop - start]
            yield Batch(chosen, position, position, torch.full_like(position, -1))


class KnownDataModule(ImageDataModule):
    """Batches drawn from a known density."""

    def __init__(
        self,
        density: GaussianMixture,
        name: str,
        *,
        quantized: bool,
        **batching: Unpack[Batching],
    ) -> None:
        release = f"drawn from the known density {name}, {'8-bit' if quantized else 'not quantised'}"
        identity = f"{release} {density.image_shape}"
        super().__init__(
            dataset=name, release=release, path=None, identity=identity, counts=SPLIT_IMAGES, **batching
        )
        self.density, self.quantized = density, quantized

    def photographs(self, split: str, positions: Tensor) -> Tensor:
        """Each image is one of its own: its position."""
        check_positions(split, positions, self.counts[split])
        return positions.clone()

    @property
    def batches(self) -> int:
        """Global training batches in an epoch."""
        return max(1, EPOCH_IMAGES // self.batch_size)

    def epoch_loader(self, epoch: int, start: int) -> DataLoader[Any]:
        """This device's part of an epoch's global batches, from batch `start` on."""
        draws = TrainingDraws(
            self.density,
            self.quantized,
            batches=self.batches,
            each=self.batch_size // self.streams,
            streams=self.device_streams(),
            total=self.streams,
            key=(self.seed, epoch),
            start=start,
        )
        return make_loader(draws, self.workers)

    def evenly_spaced(
        self, split: str, count: int, batch_size: int, place: tuple[int, int] = (0, 1), workers: int = 0
    ) -> DataLoader[Any]:
        """The first `count` images of a split, in order, each once; see `ImageDataModule`."""
        count = min(count, self.counts[split])
        draws = MeasuredDraws(self.density, self.quantized, split, count, batch_size, place, workers)
        return make_loader(draws, workers)
