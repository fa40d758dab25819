"""Writes checkpoints, whole or not at all: the best and the last at validations, the last also at a stop."""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from dualscore.errors import StoppedError
from dualscore.runs.folder import Run, older
from dualscore.runs.watchdog import StopSignals
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback
from dualscore.training.trainer import diverged

AGREE_EVERY = 10
"""Steps between the moments when several devices ask each other whether one was told to stop."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes aside in the same folder, flushes to disk, then renames; keeps older ones of the same name.

    Lightning's own writes to the system's temporary folder and moves, which across file systems is a copy
    over the last good checkpoint. `keep` checkpoints of a name are kept (`last.ckpt`, `last-1.ckpt`, …). If
    the disk takes none, training goes on with a warning.
    """

    def __init__(self, keep: int, warn: Callable[[str], None]) -> None:
        self.keep, self.warn = keep, warn
        self.written = False
        """Whether the last attempt of this process succeeded."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        aside = path.with_name(f".{path.name}.tmp")
        self.written = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, aside)
            for age in range(self.keep - 1, 0, -1):
                if (younger := older(path, age - 1)).exists():
                    os.replace(younger, older(path, age))
            os.replace(aside, path)
            self.written = True
            _flush_folder(path.parent)
        except OSError as error:
            self.warn(
                f"{path}: not written ({error.strerror or error}); training goes on and the one before is "
                "kept; make room, or what is learned from here on is lost when the run ends"
            )
        finally:
            aside.unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # what PyTorch makes of a failed write
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _flush_folder(folder: Path) -> None:
    """Make a renaming outlive a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


class Saving(TrainingCallback, Checkpoint):
    """Saves the last checkpoint and the one with the lowest `monitor`; stops the run when it is asked to.

    Lightning's own ModelCheckpoint would count a checkpoint as written that a full disk refused, and forget
    the best figure in a folder that was moved.
    """

    def __init__(self, run: Run, monitor: str, io: AtomicCheckpointIO, signals: StopSignals) -> None:
        self.run, self.monitor, self.io, self.signals = run, monitor, io, signals
        self.best = math.inf
        self.written = True
        """Whether the last checkpoint was."""
        self._stopping = False

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["monitor"] == self.monitor and self.run.best.exists():
            self.best = state_dict["best"]

    def on_train_start(self, *_: object) -> None:
        self.signals.install()  # Lightning has put its own in the place of ours

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        figure = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(figure):  # nor are the weights worth keeping
            raise diverged(f"step {trainer.global_step}: {self.monitor} is not finite")
        if figure < self.best:
            before, self.best = self.best, figure
            self._save(trainer, self.run.best)
            if not self.written:
                self.best = before
        self._save(trainer, self.run.last)  # after the best, whose figure it holds
        if self._stopping or self._asked(trainer):
            self._stop(trainer)

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        if trainer.world_size > 1 and trainer.global_step % AGREE_EVERY:
            return
        # Not before a validation, which saves itself: a run that ended in between would go on without it.
        every = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        if trainer.global_step % every and self._asked(trainer):
            self._save(trainer, self.run.last)
            self._stopping = True

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if self._stopping:  # only here, where the step before has been logged
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        who = self.signals.received or "a signal to another device"
        saved = "saved" if self.written else "NOT saved"
        raise StoppedError(
            f"step {trainer.global_step:,}: stopped by {who}; {saved}, and the same command goes on"
        )

    def _asked(self, trainer: Trainer) -> bool:
        """Whether any device was asked to stop, the same answer on all."""
        asked = self.signals.received is not None
        if trainer.world_size == 1:
            return asked
        return not trainer.strategy.reduce_boolean_decision(not asked, all=True)

    def _save(self, trainer: Trainer, path: Path) -> None:
        """Write a checkpoint, and note whether it was written: the same answer on all devices."""
        trainer.save_checkpoint(path, weights_only=False)
        self.written = trainer.strategy.broadcast(self.io.written)
