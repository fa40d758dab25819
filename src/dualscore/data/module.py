"""The Lightning data module: prepared shards in, batches of stored images out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from dualscore.data.plan import EpochPlan
from dualscore.data.reader import Batch, EvenlySpacedBatches, TrainingBatches
from dualscore.errors import DataError
from dualscore.shards import Manifest


class ResumableLoader:
    """A training loader that knows its place: epoch and batches consumed, the same on every device.

    Lightning saves `state_dict` into checkpoints and calls `load_state_dict` before training goes on; the
    plan is then replayed to that place.

    Args:
        datamodule: what makes the loader of an epoch from a batch on.
        batches: global batches in an epoch.
    """

    def __init__(self, datamodule: "ShardDataModule", batches: int) -> None:
        self._datamodule = datamodule
        self._batches = batches
        self.epoch = 0
        self.consumed = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch, or the next epoch where nothing of this one is left."""
        # Done here, not after the last batch: Lightning stops by the length and never asks further.
        if self.consumed >= self._batches:
            self.epoch, self.consumed = self.epoch + 1, 0
        for batch in self._datamodule.epoch_loader(self.epoch, self.consumed):
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The place: epoch and batches of it consumed."""
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that `state_dict` returned."""
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class ShardDataModule(lightning.LightningDataModule):
    """Training, validation and evaluation batches from a folder of shards.

    Args:
        folder: a prepared data set.
        manifest: its manifest.
        batch_size: training images a step over all devices.
        streams: lanes of a batch; see `dualscore.data.plan`.
        workers: loader processes a device; 0 reads in the training process.
        shuffle_buffer: images held for shuffling by a loader process.
        seed: the run's seed.
        validate_images: evenly spaced validation images used while training.
        evaluate_images: validation images used in evaluation.
        evaluate_train_images: training images used in evaluation.
        evaluate_batch_size: images a batch on a device in validation and evaluation.

    Raises:
        DataError: if there are fewer images than a batch or than devices need.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        batch_size: int,
        streams: int,
        workers: int,
        shuffle_buffer: int,
        seed: int,
        validate_images: int,
        evaluate_images: int,
        evaluate_train_images: int,
        evaluate_batch_size: int,
    ) -> None:
        super().__init__()
        self.folder, self.manifest = folder, manifest
        self.batch_size, self.streams, self.workers = batch_size, streams, workers
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        self.validate_images = validate_images
        self.evaluate_images, self.evaluate_train_images = evaluate_images, evaluate_train_images
        self.evaluate_batch_size = evaluate_batch_size
        if self._plan(0).batches < 1:
            raise DataError(
                f"{folder}: {manifest.splits['train'].images} training images are too few for "
                f"data.batch_size={batch_size} with data.workers={workers}; lower one of them"
            )

    def _plan(self, epoch: int) -> EpochPlan:
        shards = self.manifest.splits["train"].shards
        return EpochPlan(shards, self.batch_size, self.streams, max(1, self.workers), self.seed, epoch)

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, dataset: TrainingBatches | EvenlySpacedBatches) -> DataLoader[Any]:
        return DataLoader(
            dataset, batch_size=None, num_workers=self.workers, pin_memory=torch.cuda.is_available()
        )

    def epoch_loader(self, epoch: int, start: int) -> DataLoader[Any]:
        """This device's part of an epoch's global batches, from batch `start` on."""
        rank, world_size = self._place()
        each = self.streams // world_size
        streams = range(rank * each, (rank + 1) * each)
        dataset = TrainingBatches(
            self.folder, self.manifest.image_shape, self._plan(epoch), streams, self.shuffle_buffer, start
        )
        return self._loader(dataset)

    def _evenly_spaced(self, split: str, count: int) -> DataLoader[Any]:
        shards = self.manifest.splits[split].shards
        rank, world_size = self._place()
        dataset = EvenlySpacedBatches(
            self.folder,
            self.manifest.image_shape,
            shards,
            count,
            self.evaluate_batch_size,
            part=(rank, world_size),
            workers=self.workers,
        )
        if dataset.count < world_size:
            few = f"{dataset.count} {split} images"
            raise DataError(f"{self.folder}: {few} are too few for {world_size} devices")
        return self._loader(dataset)

    def train_dataloader(self) -> ResumableLoader:
        """The endless, resumable sequence of training batches."""
        return ResumableLoader(self, self._plan(0).batches)

    def val_dataloader(self) -> DataLoader[Any]:
        """The fixed validation set of training."""
        return self._evenly_spaced("val", self.validate_images)

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """What an evaluation sees: validation images, then training images, both as stored."""
        return [
            self._evenly_spaced("val", self.evaluate_images),
            self._evenly_spaced("train", self.evaluate_train_images),
        ]
