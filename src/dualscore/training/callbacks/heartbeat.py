"""Says what a run is doing, to people and to the watchdog."""

import resource
import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dualscore.runs.folder import Run
from dualscore.runs.run_status import State, Status
from dualscore.runs.watchdog import Phase, Watchdog
from dualscore.training.callbacks.health import GradientHealth
from dualscore.training.callbacks.progress import Throughput, estimates

EVERY = 5.0
"""Seconds between words."""


class Heartbeat(Callback):
    """Keeps a run's `status.json` and tells the `watchdog` where this device is.

    Args:
        run: the run.
        status: what has been said so far.
        throughput: knows the speed.
        health: knows the steps left out.
    """

    watchdog: Watchdog

    def __init__(self, run: Run, status: Status, throughput: Throughput, health: GradientHealth) -> None:
        self.run, self.status = run, status
        self.throughput, self.health = throughput, health
        self._said = 0.0

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        self.watchdog.adopt_children()
        self.status.max_steps = trainer.max_steps
        self._say(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.computing)

    def on_before_backward(self, trainer: lightning.Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.exchanging)

    def on_after_backward(self, trainer: lightning.Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.done)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.waiting)
        if time.monotonic() - self._said > EVERY:
            self._say(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.done)

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        found = {name: str(estimate) for name, estimate in estimates(trainer.callback_metrics).items()}
        self.status.bits_per_dim, self.status.bound = found.get("bits/dim"), found.get("bound")
        self._say(trainer)

    def _say(self, trainer: lightning.Trainer) -> None:
        self._said = time.monotonic()
        if not trainer.is_global_zero:
            return
        status = self.status
        status.state, status.reason, status.step = State.training, None, trainer.global_step
        status.images_per_second, status.stall = self.throughput.rate, self.throughput.stall
        status.skipped_steps = self.health.skipped
        status.memory = _memory(trainer.strategy.root_device)
        if (left := self.throughput.seconds_left(trainer)) is not None:
            status.seconds_left = left
        status.say(self.run.folder)


def _memory(device: torch.device) -> int:
    """The most that was taken so far, in bytes: of a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
