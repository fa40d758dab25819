"""Lightning callbacks: what a run reports, and what stops it."""

from dualscore.training.callbacks.bar import TrainingBar
from dualscore.training.callbacks.checkpointing import Saving
from dualscore.training.callbacks.health import GradientHealth
from dualscore.training.callbacks.heartbeat import Heartbeat
from dualscore.training.callbacks.journal import Journal
from dualscore.training.callbacks.pictures import Pictures
from dualscore.training.callbacks.progress import ConsoleReport, Throughput
from dualscore.training.callbacks.rate import LearningRate
from dualscore.training.callbacks.references import References
from dualscore.training.callbacks.skipped import SkippedImages
from dualscore.training.callbacks.spikes import SpikeGuard
from dualscore.training.callbacks.validation_figures import ValidationFigures

__all__ = [
    "ConsoleReport",
    "GradientHealth",
    "Heartbeat",
    "Journal",
    "LearningRate",
    "Pictures",
    "References",
    "Saving",
    "SkippedImages",
    "SpikeGuard",
    "Throughput",
    "TrainingBar",
    "ValidationFigures",
]
