"""Tells of training images that could not be read, and stops a run that lost too many."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dualscore.data.base import ImageDataModule
from dualscore.data.substitutes import SkipCount
from dualscore.errors import DataError
from dualscore.training.callbacks.steps import is_logged


class SkippedImages(Callback):
    """Logs `data/skipped_images`, those of the epoch over all devices; warns once a shard; keeps a limit.

    Alone, a device looks before every step. Several look together before every entry in the log and every
    validation, so that none of them waits, and no checkpoint is written beyond the limit.

    Args:
        limit: unreadable images an epoch that are borne.
        datamodule: what reads them.
        warn: told once a shard.
    """

    def __init__(self, limit: int, datamodule: ImageDataModule, warn: Callable[[str], None]) -> None:
        self.limit, self.path, self.warn = limit, datamodule.path, warn
        self._datamodule = datamodule
        self._count = SkipCount(datamodule.training_shards)
        self._warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._count.epoch, "positions": list(self._count.positions)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._count.epoch, self._count.positions = state_dict["epoch"], list(state_dict["positions"])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if trainer.world_size == 1 or is_logged(trainer):
            self._look(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if self._datamodule.training_shards and is_logged(trainer):
            pl_module.log("data/skipped_images", float(len(self._count.positions)))

    def on_validation_start(self, trainer: lightning.Trainer, *_: object) -> None:
        self._look(trainer)

    def _look(self, trainer: lightning.Trainer) -> None:
        """Count what all devices have lost since the last time."""
        lost, self._datamodule.unreadable = self._datamodule.unreadable, []
        if trainer.world_size > 1:
            everyones: list[list[tuple[int, int]]] = [[]] * trainer.world_size
            torch.distributed.all_gather_object(everyones, lost)
            lost = sorted(pair for part in everyones for pair in part)
        fresh: dict[str, int] = {}
        for epoch, position in lost:
            file, entry = self._count.add(epoch, position)
            if file not in self._warned:
                fresh.setdefault(file, entry)
            if len(self._count.positions) > self.limit:
                raise self._too_many()
        self._count.begin(self._datamodule.epoch_read)
        self._warned |= fresh.keys()
        for file, entry in fresh.items():
            self.warn(
                f"{self.path}/{file}: entry {entry} cannot be read; other images take the place of "
                f"{self._count.of(file)} of this shard so far; see make verify-data OUT={self.path}"
            )

    def _too_many(self) -> DataError:
        file, count = self._count.worst()
        total = len(self._count.positions)
        return DataError(
            f"{self.path}/{file}: {count} images cannot be read, {total} in all in this epoch, more than "
            f"data.max_skipped={self.limit}; see which with make verify-data OUT={self.path}, and prepare or "
            "copy the data set again"
        )
