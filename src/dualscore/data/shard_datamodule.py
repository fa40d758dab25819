"""The Lightning data module of prepared shards."""

import hashlib
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dualscore.data.base import Batching, ImageDataModule, check_positions, make_loader
from dualscore.data.epoch_plan import EpochPlan
from dualscore.data.reader import EvenlySpacedBatches, TrainingBatches
from dualscore.data.shards import Manifest
from dualscore.data.source import Source, local_folder
from dualscore.errors import DataError


class ShardDataModule(ImageDataModule):
    """Batches from shards; `training` are the positions of the training images that are used, all if None."""

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        *,
        shuffle_buffer: int,
        training: range | None = None,
        **batching: Unpack[Batching],
    ) -> None:
        super().__init__(
            dataset=manifest.dataset,
            release=manifest.release,
            path=source,
            identity=hashlib.sha256(f"{manifest.splits}{training or ''}".encode()).hexdigest(),
            counts=manifest.images | ({} if training is None else {"train": len(training)}),
            training_shards=manifest.splits["train"].shards,
            **batching,
        )
        self.source, self.manifest, self.training = source, manifest, training
        self.shuffle_buffer = shuffle_buffer
        if self.batches < 1:
            raise DataError(
                f"{source}: {self.counts['train']} training images are too few for "
                f"data.batch_size={self.batch_size} with data.workers={self.workers}; lower one of them"
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
        streams, shape = self.device_streams(), self.manifest.image_shape
        batches = TrainingBatches(self.source, shape, self._plan(epoch), streams, self.shuffle_buffer, start)
        return make_loader(batches, self.workers)

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
        return make_loader(dataset, workers)
