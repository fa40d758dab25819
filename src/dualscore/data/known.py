"""Images drawn from a known density: endless training data, and the truth beside every estimate."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
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
from dualscore.data.loader import Loader
from dualscore.densities import GaussianMixture
from dualscore.noise import SAMPLING, seeded_generator

EPOCH_IMAGES = 2**17
"""Training images in what is called an epoch; the next one has new images."""
SPLIT_IMAGES = 2**17
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
    batching: Batching
    streams: range
    """This device's."""
    epoch: int
    start: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in order."""
        (worker, workers), batching = worker_place(), self.batching
        each = batching.batch_size // batching.streams
        for number in range(self.start + worker, epoch_batches(batching), workers):
            keys = [(batching.seed, self.epoch, number, stream) for stream in self.streams]
            images = [draw_images(self.density, each, self.quantized, _generator(*key)) for key in keys]
            yield _batch(torch.cat(images), number * batching.batch_size + self.streams.start * each)


@dataclass(eq=False)
class MeasuredDraws(MeasuredBatches):
    """The first `count` images of a split, a device's share of them; the same for every run and seed."""

    density: GaussianMixture
    quantized: bool
    split: str
    count: int
    batch_size: int
    place: tuple[int, int]
    workers: int

    def _block(self, number: int) -> Tensor:
        return draw_images(self.density, BLOCK, self.quantized, _generator(-_SPLITS[self.split], number))

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in the images' order."""
        first, last = self.range_of(worker_place()[0])
        for start in range(first, last, self.batch_size):
            stop = min(start + self.batch_size, last)
            blocks = range(start // BLOCK, (stop - 1) // BLOCK + 1)
            images = torch.cat([self._block(number) for number in blocks])
            offset = start - blocks.start * BLOCK
            yield _batch(images[offset : offset + stop - start], start)


def epoch_batches(batching: Batching) -> int:
    """Global training batches in an epoch."""
    return max(1, EPOCH_IMAGES // batching.batch_size)


def _generator(*key: int) -> torch.Generator:
    return seeded_generator(torch.device("cpu"), SAMPLING, *key)


def _batch(images: Tensor, first: int) -> Batch:
    """A batch of images at successive positions."""
    position = torch.arange(first, first + len(images))
    return Batch(images, position, position, torch.full_like(position, -1))


class KnownDataModule(ImageDataModule):
    """Batches drawn from a known density."""

    def __init__(self, density: GaussianMixture, name: str, quantized: bool, batching: Batching) -> None:
        release = f"drawn from the known density {name}, {'8-bit' if quantized else 'not quantised'}"
        super().__init__(batching)
        self.density, self.quantized = density, quantized
        self.dataset, self.release = name, release
        self.identity = f"{release} {density.image_shape}"
        self.counts = dict.fromkeys(_SPLITS, SPLIT_IMAGES)

    def photographs(self, split: str, positions: Tensor) -> Tensor:
        """Each image is one of its own: its position."""
        check_positions(split, positions, self.counts[split])
        return positions.clone()

    @property
    def batches(self) -> int:
        """Global training batches in an epoch."""
        return epoch_batches(self.batching)

    def epoch_loader(self, epoch: int, start: int) -> Loader:
        """This device's part of an epoch's global batches, from batch `start` on."""
        streams = self.device_streams()
        draws = TrainingDraws(self.density, self.quantized, self.batching, streams, epoch, start)
        return self.training_loader(draws, start)

    def evenly_spaced(
        self, split: str, count: int, batch_size: int, place: tuple[int, int] = (0, 1), workers: int = 0
    ) -> Loader:
        """The first `count` images of a split, in order, each once; see `ImageDataModule`."""
        count = min(count, self.counts[split])
        draws = MeasuredDraws(self.density, self.quantized, split, count, batch_size, place, workers)
        return draws.loader()
