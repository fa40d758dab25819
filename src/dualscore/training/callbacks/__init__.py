"""The table of callbacks: what a training reports and what stops it, one entry each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from lightning.pytorch.callbacks import Callback
from rich.console import Console

from dualscore.dashboard.logger import PatientLogger
from dualscore.dashboard.run_log import Compared
from dualscore.data.datamodule import ImageDataModule
from dualscore.runs.folder import Run
from dualscore.runs.run_status import Status
from dualscore.runs.watchdog import StopSignals
from dualscore.settings.config import Best, ExperimentConfig
from dualscore.training.callbacks.checkpointing import AtomicCheckpointIO, Saving
from dualscore.training.callbacks.health import GradientHealth, Losses, SpikeGuard
from dualscore.training.callbacks.journal import Journal, SkippedImages
from dualscore.training.callbacks.pictures import Pictures
from dualscore.training.callbacks.progress import ConsoleReport, Heartbeat, Throughput, TrainingBar
from dualscore.training.callbacks.validation import ValidationFigures

Built = TypeVar("Built", bound=Callback)


@dataclass
class Training:
    """What a callback may need to know of the training that it is built for."""

    config: ExperimentConfig
    run: Run
    datamodule: ImageDataModule
    logger: PatientLogger
    status: Status
    signals: StopSignals
    journal: Journal
    io: AtomicCheckpointIO
    compared: Compared
    bar: Console | None  # where a bar can be drawn
    say: Callable[[str], None]  # a line of progress
    warn: Callable[[str], None]
    callbacks: list[Callback] = field(default_factory=list)  # those built so far

    def find(self, kind: type[Built]) -> Built:
        """A callback that stands earlier in the table."""
        return next(callback for callback in self.callbacks if isinstance(callback, kind))

    def recording(self, event: str) -> Callable[[str], None]:
        """`warn`, which also writes an event of the journal's `KINDS` down."""
        return self.journal.recording(event, self.warn)

    @property
    def monitor(self) -> str:
        """The validation figure whose lowest value is the best checkpoint's."""
        return "val/bound" if self.config.trainer.best is Best.bound else "val/loss"


CALLBACKS: dict[str, Callable[[Training], Callback | None]] = {
    "losses": lambda _: Losses(),
    "gradient_health": lambda t: GradientHealth(t.config.trainer.max_skipped, t.recording("skipped_steps")),
    "skipped_images": lambda t: SkippedImages(
        t.config.data.max_skipped, t.datamodule, t.recording("unreadable_images")
    ),
    "throughput": lambda t: Throughput(t.config.data.batch_size),
    "heartbeat": lambda t: Heartbeat(t.run, t.status, t.find(Throughput), t.find(GradientHealth)),
    "validation_figures": lambda t: ValidationFigures(
        t.compared.published, t.compared.psnr, t.logger.log_histogram
    ),
    "pictures": lambda t: Pictures(t.logger.log_picture),
    "journal": lambda t: t.journal,
    "console": lambda t: ConsoleReport(t.say, t.bar is not None, t.find(Throughput)),
    "bar": lambda t: TrainingBar(t.bar, t.find(Throughput)) if t.bar else None,
    "spike_guard": lambda t: (
        SpikeGuard(t.config.trainer.spike, t.run, t.recording("rollbacks"))
        if t.config.trainer.spike
        else None
    ),
    "saving": lambda t: Saving(t.run, t.monitor, t.io, t.signals, t.warn),
}
"""In the order in which they are called; None where a run has none. docs/extending.md adds one."""


def build_callbacks(training: Training) -> list[Callback]:
    """The callbacks of the table, which `training` then knows."""
    for builder in CALLBACKS.values():
        if (callback := builder(training)) is not None:
            training.callbacks.append(callback)
    return training.callbacks
