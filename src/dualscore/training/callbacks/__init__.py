"""The table of callbacks: what a training reports and what stops it, one entry each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from lightning.pytorch.callbacks import Callback

from dualscore.dashboard.logger import PatientLogger
from dualscore.dashboard.run_log import Compared
from dualscore.data.base import ImageDataModule
from dualscore.runs.folder import Run
from dualscore.runs.run_status import Status
from dualscore.runs.signals import StopSignals
from dualscore.settings.config import Best, ExperimentConfig
from dualscore.terminal import Terminal
from dualscore.training.callbacks.checkpointing import AtomicCheckpointIO, Saving
from dualscore.training.callbacks.health import GradientHealth, SpikeGuard
from dualscore.training.callbacks.journal import Journal, SkippedImages
from dualscore.training.callbacks.pictures import Pictures
from dualscore.training.callbacks.progress import (
    ConsoleReport,
    Heartbeat,
    LearningRate,
    Throughput,
    TrainingBar,
)
from dualscore.training.callbacks.validation import References, ValidationFigures

Built = TypeVar("Built", bound=Callback)


@dataclass
class Training:
    """What a callback may need to know of the training that it is built for."""

    config: ExperimentConfig
    run: Run
    datamodule: ImageDataModule
    logger: PatientLogger
    console: Terminal
    status: Status
    signals: StopSignals
    journal: Journal
    io: AtomicCheckpointIO
    compared: Compared
    warn: Callable[[str], None]
    """Tells people."""
    callbacks: list[Callback] = field(default_factory=list)
    """Those built so far."""

    def find(self, kind: type[Built]) -> Built:
        """A callback that stands earlier in the table."""
        return next(callback for callback in self.callbacks if isinstance(callback, kind))


def _skipped_images(training: Training) -> Callback:
    warn = training.journal.recording("unreadable_images", training.warn)
    return SkippedImages(training.config.data.max_skipped, training.datamodule, warn)


def _heartbeat(training: Training) -> Callback:
    status, throughput = training.status, training.find(Throughput)
    return Heartbeat(training.run, status, throughput, training.find(GradientHealth))


def _spike_guard(training: Training) -> Callback | None:
    if not (factor := training.config.trainer.spike):
        return None
    return SpikeGuard(factor, training.run, training.journal.recording("rollbacks", training.warn))


def _saving(training: Training) -> Callback:
    monitor = "val/bound" if training.config.trainer.best is Best.bound else "val/loss"
    return Saving(training.run, monitor, training.io, training.signals)


CALLBACKS: dict[str, Callable[[Training], Callback | None]] = {
    "gradient_health": lambda t: GradientHealth(
        t.config.trainer.max_skipped, t.journal.recording("skipped_steps", t.warn)
    ),
    "skipped_images": _skipped_images,
    "throughput": lambda t: Throughput(t.config.data.batch_size),
    "heartbeat": _heartbeat,
    "references": lambda t: References(t.compared.published, t.compared.psnr),
    "validation_figures": lambda t: ValidationFigures(t.find(References), t.logger.log_histogram),
    "pictures": lambda t: Pictures(t.logger.log_picture),
    "learning_rate": lambda _: LearningRate(),
    "journal": lambda t: t.journal,
    "console": lambda t: ConsoleReport(t.console, t.find(Throughput)),
    "bar": lambda t: TrainingBar(t.console, t.find(Throughput)) if t.console.live else None,
    "spike_guard": _spike_guard,
    "saving": _saving,
}
"""In the order in which they are called; None where a run has none. docs/extending.md adds one."""


def build_callbacks(training: Training) -> list[Callback]:
    """The callbacks of the table, which `training` then knows."""
    for builder in CALLBACKS.values():
        if (callback := builder(training)) is not None:
            training.callbacks.append(callback)
    return training.callbacks
