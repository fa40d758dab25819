"""Speed, and who hears of it: the terminal's line and bar, `dualscore status`, the watchdog."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dualscore.likelihood import Estimate
from dualscore.runs.folder import Run
from dualscore.runs.run_status import State, Status, duration
from dualscore.runs.watchdog import Phase, Watchdog
from dualscore.training.callbacks.health import GradientHealth
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback, is_logged

NARROWEST, WIDEST = 6, 40
"""Columns of the bar itself."""
STATUS_EVERY = 5.0
"""Seconds from one `status.json` to the next."""


def resident_bytes() -> int:
    """The most memory that this process ever had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


class Throughput(TrainingCallback):
    """Logs `train/learning_rate`, `train/images_per_second` over all devices, and `train/stall`.

    The stall is the fraction of the time that training waits for images; time of validations is left out.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rate = self.stall = 0.0
        self._learning_rate = 0.0
        self._began = (0, 0.0)
        self._restart()

    def _restart(self) -> None:
        self._steps, self._since = 0, time.perf_counter()
        self._waited, self._ended = 0.0, self._since

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        self._began = (trainer.global_step, time.perf_counter())
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self._waited += time.perf_counter() - self._ended
        # That of the network's weights, before the schedule moves it.
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *batch: Any) -> None:
        self._ended = time.perf_counter()
        super().on_train_batch_end(trainer, pl_module, *batch)

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._steps += 1
        if is_logged(trainer):
            seconds = self._ended - self._since
            self.rate, self.stall = self._steps * self.batch_size / seconds, self._waited / seconds
            module.log("train/images_per_second", self.rate)
            module.log("train/stall", self.stall)
            module.log("train/learning_rate", self._learning_rate)
            self._restart()

    def on_validation_end(self, *_: object) -> None:
        self._restart()

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Until the last step, at the pace since training began here; None before the first step."""
        first, since = self._began
        if trainer.global_step <= first:
            return None
        each = (time.perf_counter() - since) / (trainer.global_step - first)
        return each * (trainer.max_steps - trainer.global_step)

    def words(self, trainer: Trainer) -> list[str]:
        """Speed over all devices and time left, as far as they are known."""
        speed, seconds = self.rate, self._ended - self._since
        if not speed and seconds > 0:  # nothing is logged yet
            speed = self._steps * self.batch_size / seconds
        left = self.seconds_left(trainer)
        known = [f"{speed:,.0f} images/s"] if speed else []
        return known if left is None else [*known, f"{duration(left)} left"]


def last_estimates(logged: Mapping[str, Any]) -> dict[str, Estimate]:
    """The last validation's bits/dim among logged values: by the paper's protocol, and the bound."""
    return {
        name: Estimate(float(logged[key]), float(logged[f"{key}_stderr"]))
        for name, key in (("bits/dim", "val/bits_per_dim"), ("bound", "val/bound"))
        if key in logged and f"{key}_stderr" in logged
    }


class ConsoleReport(TrainingCallback):
    """Says a line at every validation and, unless a bar shows it, the speed as soon as it is known."""

    def __init__(self, say: Callable[[str], None], has_bar: bool, throughput: Throughput) -> None:
        self.say, self.throughput = say, throughput
        self._paced = has_bar

    @rank_zero_only
    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        if not self._paced and self.throughput.rate:
            self._paced = True
            self._say(trainer, [])

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"{name} {estimate}" for name, estimate in last_estimates(figures).items()]
        parts.append(f"space {figures['val/space_loss']:.4f}")
        if "val/time_loss" in figures:
            parts.append(f"time {figures['val/time_loss']:.5f}")
        self._say(trainer, parts)

    def _say(self, trainer: Trainer, parts: list[str]) -> None:
        step = f"step {trainer.global_step:>6,}/{trainer.max_steps:,}"
        self.say(" · ".join([step, *parts, *self.throughput.words(trainer)]))


class TrainingBar(TrainingCallback):
    """Draws a bar below the lines that are printed; on a terminal only, and gone when training ends."""

    def __init__(self, console: Console, throughput: Throughput) -> None:
        self.throughput = throughput
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)
        self._doing = "training"
        self._trainer: Trainer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line, or two where the words do not fit beside the bar."""
        trainer = self._trainer
        steps = f"{trainer.global_step:,}/{trainer.max_steps:,}"
        found = last_estimates(trainer.callback_metrics)
        bits = [f"{found['bits/dim']} bits/dim"] if "bits/dim" in found else []
        words = " · ".join([*bits, *self.throughput.words(trainer)])
        around = len(self._doing) + len(steps) + 4
        alone = around + NARROWEST + len(words) > options.max_width
        beside = steps if alone or not words else f"{steps} · {words}"
        room = options.max_width - len(self._doing) - len(beside) - 4
        bar = ProgressBar(trainer.max_steps, trainer.global_step, max(NARROWEST, min(WIDEST, room)))
        line = Table.grid(padding=(0, 1))
        line.add_row(self._doing, bar, beside)
        yield line
        if alone:
            yield Text(words, no_wrap=True, overflow="ellipsis")

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        self._trainer = trainer
        self._live.start()

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._show("validating")

    def on_validation_end(self, *_: object) -> None:
        self._show("training")

    def on_train_end(self, *_: object) -> None:
        self._live.stop()

    def on_exception(self, *_: object) -> None:
        self._live.stop()

    def _show(self, doing: str) -> None:
        self._doing = doing
        self._live.refresh()  # at once: a short one would be over before the bar comes round


class Heartbeat(TrainingCallback):
    """Keeps a run's `status.json`, and tells the `watchdog` where this device is."""

    watchdog: Watchdog

    def __init__(self, run: Run, status: Status, throughput: Throughput, health: GradientHealth) -> None:
        self.run, self.status = run, status
        self.throughput, self.health = throughput, health
        self._said = 0.0

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        self.watchdog.adopt_children()
        self._say(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.computing)

    def on_before_backward(self, trainer: Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.exchanging)

    def on_after_backward(self, trainer: Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.done)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.waiting)
        if time.monotonic() - self._said > STATUS_EVERY:
            self._say(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.watchdog.get_on(trainer.global_step, Phase.done)

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        found = {name: str(estimate) for name, estimate in last_estimates(trainer.callback_metrics).items()}
        self.status.bits_per_dim, self.status.bound = found.get("bits/dim"), found.get("bound")
        self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        self._said = time.monotonic()
        if not trainer.is_global_zero:
            return
        status = self.status
        status.state, status.reason = State.training, None
        status.step, status.max_steps = trainer.global_step, trainer.max_steps
        status.images_per_second, status.stall = self.throughput.rate, self.throughput.stall
        status.skipped_steps = self.health.skipped
        device = trainer.strategy.root_device
        status.memory = resident_bytes()
        if device.type == "cuda":
            status.memory = torch.cuda.max_memory_allocated(device)
        if (left := self.throughput.seconds_left(trainer)) is not None:
            status.seconds_left = left
        status.say(self.run.folder)
