"""Writes checkpoints: the best and the last at validations, the last also when a run is asked to stop."""

import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint

from dualscore.errors import DivergenceError, StoppedError
from dualscore.runs.checkpoint_io import AtomicCheckpointIO
from dualscore.runs.folder import Run
from dualscore.runs.signals import StopSignals
from dualscore.terminal.hints import afresh
from dualscore.training.callbacks.steps import ends_step

AGREE_EVERY = 10
"""Steps between the moments when several devices ask each other whether one was told to stop."""


class Saving(Checkpoint):
    """The checkpoints of a run.

    Lightning's own ModelCheckpoint would count a checkpoint as written that a full disk refused, and forget
    the best figure in a folder that was moved.

    Args:
        run: where they go.
        monitor: the validation figure whose lowest value is the best.
        io: what writes them; tells whether it did.
        signals: what may ask the run to stop.
    """

    def __init__(self, run: Run, monitor: str, io: AtomicCheckpointIO, signals: StopSignals) -> None:
        self.run, self.monitor, self.io, self.signals = run, monitor, io, signals
        self.best = math.inf
        self.written = True
        """Whether the last checkpoint was."""
        # Whether the step at which the run is to stop was saved; None to go on.
        self._saved: bool | None = None

    def state_dict(self) -> dict[str, Any]:
        """The lowest figure so far."""
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the lowest figure so far, if it is of the same kind."""
        if state_dict["monitor"] == self.monitor and self.run.best.exists():
            self.best = state_dict["best"]

    def on_train_start(self, *_: object) -> None:
        self.signals.install()  # Lightning has put its own in the place of ours

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        figure = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(figure):  # nor are the weights worth keeping
            what = f"step {trainer.global_step}: {self.monitor} is not finite"
            raise DivergenceError(
                f"{what}; the last good checkpoint is kept; try a smaller optim.lr with {afresh()}"
            )
        if figure < self.best:
            before, self.best = self.best, figure
            if not self._save(trainer, best=True):
                self.best = before
        saved = self._save(trainer, best=False)  # after the best, whose figure it holds
        if self._saved is not None or self._asked(trainer):
            self._stop(trainer, saved)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        if trainer.world_size > 1 and trainer.global_step % AGREE_EVERY:
            return
        # Not before a validation, which saves itself: a run that ended in between would go on without it.
        every = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        if trainer.global_step % every and self._asked(trainer):
            self._saved = self._save(trainer, best=False)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        # Only here, where the step before has been logged.
        if self._saved is not None:
            self._stop(trainer, self._saved)

    def _stop(self, trainer: lightning.Trainer, saved: bool) -> None:
        who = self.signals.received or "a signal to another device"
        raise StoppedError(
            f"step {trainer.global_step:,}: stopped by {who}; {'' if saved else 'NOT '}saved, and the same "
            "command goes on"
        )

    def _asked(self, trainer: lightning.Trainer) -> bool:
        """Whether any device was asked to stop, the same answer on all."""
        asked = self.signals.received is not None
        if trainer.world_size == 1:
            return asked
        return not trainer.strategy.reduce_boolean_decision(not asked, all=True)

    def _save(self, trainer: lightning.Trainer, best: bool) -> bool:
        """Write a checkpoint; whether it was, the same answer on all devices."""
        trainer.save_checkpoint(self.run.best if best else self.run.last, weights_only=False)
        self.written = trainer.strategy.broadcast(self.io.written)
        return self.written
