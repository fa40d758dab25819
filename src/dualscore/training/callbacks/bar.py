"""The bar that moves while training: steps, bits/dim, speed and time left, as much as fits."""

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dualscore.terminal import Terminal
from dualscore.training.callbacks.progress import Throughput, estimates, pace

NARROWEST, WIDEST = 6, 40
"""Columns of the bar itself."""


class TrainingBar(Callback):
    """Draws the bar below the lines that are printed; on a terminal only, and gone when training ends."""

    def __init__(self, console: Terminal, throughput: Throughput) -> None:
        self.console, self.throughput = console, throughput
        self._live: Live | None = None
        self._doing = "training"
        self._trainer: lightning.Trainer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line, or two where the words do not fit beside the bar."""
        trainer = self._trainer
        steps = f"{trainer.global_step:,}/{trainer.max_steps:,}"
        found = estimates(trainer.callback_metrics)
        bits = [f"{found['bits/dim']} bits/dim"] if "bits/dim" in found else []
        words = " · ".join([*bits, *pace(trainer, self.throughput)])
        alone = len(self._doing) + len(steps) + NARROWEST + 4 + len(words) > options.max_width
        beside = steps if alone or not words else f"{steps} · {words}"
        room = max(NARROWEST, min(WIDEST, options.max_width - len(self._doing) - len(beside) - 4))
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=trainer.max_steps, completed=trainer.global_step, width=room)
        line.add_row(self._doing, bar, beside)
        yield line
        if alone:
            yield Text(words, no_wrap=True, overflow="ellipsis")

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        self._trainer = trainer
        self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def on_validation_start(self, *_: object) -> None:
        self._show("validating")

    def on_validation_end(self, *_: object) -> None:
        self._show("training")

    def on_train_end(self, *_: object) -> None:
        self._stop()

    def on_exception(self, *_: object) -> None:
        self._stop()

    def _show(self, doing: str) -> None:
        self._doing = doing
        if self._live is not None:
            self._live.refresh()  # at once: a short one would be over before the bar comes round

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
