"""Lightning callbacks: what a run reports, and what stops it."""

from dualscore.callbacks.figures import BitsPerDim, Bound, NoiseCurves
from dualscore.callbacks.health import GradientHealth
from dualscore.callbacks.heartbeat import Heartbeat
from dualscore.callbacks.pictures import Pictures
from dualscore.callbacks.progress import ConsoleReport, ProgressBar, Throughput
from dualscore.callbacks.saving import Saving
from dualscore.callbacks.skipped import SkippedImages
from dualscore.callbacks.spikes import SpikeGuard

__all__ = [
    "BitsPerDim",
    "Bound",
    "ConsoleReport",
    "GradientHealth",
    "Heartbeat",
    "NoiseCurves",
    "Pictures",
    "ProgressBar",
    "Saving",
    "SkippedImages",
    "SpikeGuard",
    "Throughput",
]
