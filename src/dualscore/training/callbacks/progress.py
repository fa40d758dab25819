"""Speed, and what the terminal shows of it: a line at every validation, and a bar that moves."""

import time
from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from dualscore.likelihood import Estimate
from dualscore.runs.run_status import duration
from dualscore.terminal import Terminal
from dualscore.training.callbacks.steps import ends_step, is_logged


def estimates(logged: Mapping[str, Any]) -> dict[str, Estimate]:
    """The last validation's bits/dim among logged values: by the paper's protocol, and the bound."""
    return {
        name: Estimate(float(logged[key]), float(logged[f"{key}_stderr"]))
        for name, key in (("bits/dim", "val/bits_per_dim"), ("bound", "val/bound"))
        if key in logged and f"{key}_stderr" in logged
    }


class Throughput(Callback):
    """Logs `train/images_per_second` over all devices and `train/stall`, validation time left out.

    The stall is the fraction of the time that training waits for images.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rate = 0.0
        self.stall = 0.0
        self._began = (0, 0.0)
        self._restart()

    def _restart(self) -> None:
        self._steps, self._since = 0, time.perf_counter()
        self._waited, self._ended = 0.0, self._since

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        self._began = (trainer.global_step, time.perf_counter())
        self._restart()

    def seconds_left(self, trainer: lightning.Trainer) -> float | None:
        """Until the last step, at the pace since training began here; None before the first step."""
        first, since = self._began
        if trainer.global_step <= first:
            return None
        each = (time.perf_counter() - since) / (trainer.global_step - first)
        return each * (trainer.max_steps - trainer.global_step)

    @property
    def speed(self) -> float | None:
        """Images/s over all devices: of the last entry in the log, or since training began; None before."""
        if self.rate:
            return self.rate
        seconds = self._ended - self._since
        return self._steps * self.batch_size / seconds if self._steps and seconds > 0 else None

    def on_train_batch_start(self, *_: object) -> None:
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        self._ended = time.perf_counter()
        if not ends_step(trainer, batch_idx):
            return
        self._steps += 1
        if is_logged(trainer):
            seconds = self._ended - self._since
            self.rate, self.stall = self._steps * self.batch_size / seconds, self._waited / seconds
            pl_module.log("train/images_per_second", self.rate)
            pl_module.log("train/stall", self.stall)
            self._restart()

    def on_validation_end(self, *_: object) -> None:
        self._restart()


def pace(trainer: lightning.Trainer, throughput: Throughput) -> list[str]:
    """Speed and time left, as far as they are known."""
    left, speed = throughput.seconds_left(trainer), throughput.speed
    return [
        *([f"{speed:,.0f} images/s"] if speed is not None else []),
        *([f"{duration(left)} left"] if left is not None else []),
    ]


class ConsoleReport(Callback):
    """Prints a line at every validation: step, bits/dim, losses, speed and time left; and one of the pace.

    The latter where the time that training will take is known first, and no bar shows it.
    """

    def __init__(self, console: Terminal, throughput: Throughput) -> None:
        self.console, self.throughput = console, throughput
        self._paced = console.live

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if not self._paced and ends_step(trainer, batch_idx) and self.throughput.rate:
            self._paced = True
            if parts := pace(trainer, self.throughput):
                self.console.progress(
                    " · ".join([f"step {trainer.global_step:>6,}/{trainer.max_steps:,}", *parts])
                )

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.sanity_checking:
            return
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"step {trainer.global_step:>6,}/{trainer.max_steps:,}"]
        parts += [f"{name} {estimate}" for name, estimate in estimates(figures).items()]
        parts.append(f"space {figures['val/space_loss']:.4f}")
        if "val/time_loss" in figures:
            parts.append(f"time {figures['val/time_loss']:.5f}")
        parts += pace(trainer, self.throughput)
        self.console.progress(" · ".join(parts))
