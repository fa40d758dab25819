"""The Lightning data module of prepared shards."""

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dualscore.data.base import ImageDataModule, check_positions
from dualscore.data.epoch_plan import EpochPlan
from dualscore.data.reader import EvenlySpacedBatches, TrainingBatches
from dualscore.data.shards import Manifest
from dualscore.data.source import Source, local_folder
from dualscore.data.workers import live_with_the_run
from dualscore.errors import DataError


class ShardDataModule(ImageDataModule):
    """Batches from shards; `training` are the positions of the training images that are used, all if None."""

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        *,
        batch_size: int,
        streams: int,
        workers: int,
        accumulate: int,
        shuffle_buffer: int,
        seed: int,
        validate_images: int,
        validate_batch_size: int,
        training: range | None = None,
    ) -> None:
        super().__init__(
            dataset=manifest.dataset,
            release=manifest.release,
            path=source,
            identity=hashlib.sha256(f"{manifest.splits}{training or ''}".encode()).hexdigest(),
            counts=manifest.images | ({} if training is None else {"train": len(training)}),
            training_shards=manifest.splits["train"].shards,
            validate_images=validate_images,
            validate_batch_size=validate_batch_size,
            workers=workers,
            accumulate=accumulate,
        )
        self.source, self.manifest, self.training = source, manifest, training
        self.batch_size, self.streams = batch_size, streams
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        if self.batches < 1:
            raise DataError(
                f"{source}: {self.counts['train']} training images are too few for "
                f"data.batch_size={batch_size} with data.workers={workers}; lower one of them"
            )

    def _plan(self, epoch: int) -> EpochPlan:
        shards = self.manifest.splits["train"].shards
        groups = max(1, self.workers)
        return EpochPlan(shards, self.batch_size, self.streams, groups, self.seed, epoch, self.training)

    def photographs(self, split: str, positions: Tensor) -> Tensor | None:
        """Which photograph images are of; see `ImageDataModule`."""
        check_positions(split, positions, self.manifest.splits[split].images)
        if self.manifest.photographs is None:
            return None
        if self.manifest.photographs.each_image:
            return positions.clone()
        return self._numbers[split][positions.cpu()].to(positions)

    def photograph_name(self, split: str, number: int) -> str | None:
        """The file name of a split's photograph, None where it was not kept."""
        known = self.manifest.photographs
        names = () if known is None or known.each_image else known.splits[split].names
        return names[number] if names else None

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

    def epoch_loader(self, epoch: int, start: int) -> DataLoader[Any]:
        """This device's part of an epoch's global batches, from batch `start` on."""
        rank, world_size = self.place()
        each = self.streams // world_size
        streams = range(rank * each, (rank + 1) * each)
        dataset = TrainingBatches(
            self.source, self.manifest.image_shape, self._plan(epoch), streams, self.shuffle_buffer, start
        )
        return _loader(dataset, self.workers)

    def evenly_spaced(
        self, split: str, count: int, batch_size: int, place: tuple[int, int] = (0, 1), workers: int = 0
    ) -> DataLoader[Any]:
        """`count` evenly spaced images of a split, in order, each once; see `ImageDataModule`."""
        shards = self.manifest.splits[split].shards
        shape = self.manifest.image_shape
        dataset = EvenlySpacedBatches(
            self.source, shape, shards, count, batch_size, part=place, workers=workers,
            within=self.training if split == "train" else None,
        )  # fmt: skip
        if dataset.count < place[1]:
            few = f"{dataset.count} {split} images"
            raise DataError(f"{self.source}: {few} are too few for {place[1]} devices")
        return _loader(dataset, workers)


def _loader(dataset: Any, workers: int) -> DataLoader[Any]:  # noqa: ANN401 - either kind of batches
    pinned = torch.cuda.is_available()
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=live_with_the_run,
    )
