"""Writes checkpoints, whole or not at all: the best and the last at validations, the last also at a stop."""

import contextlib
import math
import os
import time
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

NOTICE = "DUALSCORE_NOTICE"
"""Variable of a job: seconds from its being told to stop to its end."""


class Vote:
    """Devices tell each other at every step whether one was asked to stop, and hear it one step later.

    So none waits for another, nor a host for its GPU, and all stop after the same step.
    """

    def __init__(self) -> None:
        self._hear: Callable[[], bool] | None = None

    def heard(self, asked: bool, device: torch.device) -> bool:
        """Say whether this device is asked to stop; whether any was at the step before."""
        before, self._hear = self._hear, self._say(asked, device)
        return before is not None and before()

    @staticmethod
    def _say(asked: bool, device: torch.device) -> Callable[[], bool]:
        flag = torch.full((1,), int(asked), dtype=torch.int32, device=device)
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, async_op=True)
        assert work is not None
        if device.type != "cuda":
            return lambda: bool(work.wait() and flag.item())
        work.wait()  # the GPU's stream does, not this process
        copy = torch.empty(1, dtype=torch.int32, pin_memory=True).copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def hear() -> bool:
            copied.synchronize()
            return bool(copy.item())

        return hear


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

    def __init__(
        self,
        run: Run,
        monitor: str,
        io: AtomicCheckpointIO,
        signals: StopSignals,
        warn: Callable[[str], None],
    ) -> None:
        self.run, self.monitor, self.io, self.signals, self.warn = run, monitor, io, signals, warn
        self.best = math.inf
        self.written = True
        """Whether the last checkpoint was."""
        self._stopping = False
        self._vote = Vote()
        notice = os.environ.get(NOTICE, "")
        self._notice = float(notice) if notice.isdigit() else math.inf
        self._began: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["monitor"] == self.monitor and self.run.best.exists():
            self.best = state_dict["best"]

    def on_train_start(self, *_: object) -> None:
        self.signals.listen()  # Lightning has put its own in the place of ours

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        began, self._began = self._began, None
        figure = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(figure):  # nor are the weights worth keeping
            raise diverged(f"step {trainer.global_step}: {self.monitor} is not finite")
        if figure < self.best:
            before, self.best = self.best, figure
            self._save(trainer, self.run.best)
            if not self.written:
                self.best = before
        self._save(trainer, self.run.last)  # after the best, whose figure it holds
        if began is not None:  # one that has begun is finished before a run stops
            self._compare_notice(time.monotonic() - began, "a smaller trainer.validate_images")
        if self._stopping or self._asked(trainer):
            self._stop(trainer)

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._check_notice(trainer)
        asked = self.signals.received is not None
        if trainer.world_size > 1:
            asked = self._vote.heard(asked, trainer.strategy.root_device)
        # Not before a validation, which saves itself: a run that ended in between would go on without it.
        every = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        if trainer.global_step % every and asked:
            self._save(trainer, self.run.last)
            self._stopping = True

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if self._stopping:  # only here, where the step before has been logged
            self._stop(trainer)

    def _check_notice(self, trainer: Trainer) -> None:
        """Say once where steps take so long that a job may be killed before it has saved."""
        began, self._began = self._began, time.monotonic()
        if began is None:  # the first step compiles, one after a validation counts that too
            return
        steps = 2 if trainer.world_size > 1 else 1  # devices hear of each other a step later
        way_out = "a smaller data.batch_size, or validate more often (trainer.validate_every)"
        self._compare_notice(steps * (self._began - began), way_out)

    def _compare_notice(self, needed: float, way_out: str) -> None:
        """Say once that what is done before a run stops takes longer, in seconds, than its notice."""
        if needed > self._notice:
            self.warn(
                f"stopping may take {needed:.0f} s, but this job is told {self._notice:.0f} s before "
                f"its end: what is learned since the last validation can be lost; use {way_out}"
            )
            self._notice = math.inf

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
