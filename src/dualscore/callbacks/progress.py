"""Speed, and a line on the terminal at every validation."""

import time
from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from dualscore.callbacks.steps import ends_step, is_logged
from dualscore.likelihood import Estimate
from dualscore.status import duration


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


class ProgressBar(RichProgressBar):
    """The training bar, with the loss and the last bits/dim in the words of the table."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        logged = super().get_metrics(trainer, pl_module)
        shown: dict[str, int | str | float | dict[str, float]] = {}
        if "train/loss" in logged:
            shown["loss"] = logged["train/loss"]
        shown.update({name: str(estimate) for name, estimate in estimates(logged).items()})
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning would count to the last epoch, of which there is none where steps are what counts.
        return f"epoch {current_epoch}"


class ConsoleReport(Callback):
    """Prints one line at every validation: step, bits/dim, losses, speed and time left."""

    def __init__(self, console: Console, throughput: Throughput) -> None:
        self.console, self.throughput = console, throughput

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
        if (left := self.throughput.seconds_left(trainer)) is not None:
            parts.append(f"{self.throughput.rate:,.0f} images/s")
            parts.append(f"{duration(left)} left")
        self.console.print(" · ".join(parts), highlight=False, soft_wrap=True)
