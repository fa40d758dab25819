"""The report's parts, the most wanted first."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.gpu import accuracy, machine, shards, steps, training, using
from benchmarks.gpu.jobs import Jobs
from benchmarks.gpu.setting import Setting


class Part(NamedTuple):
    """Some jobs that share a process."""

    title: str
    jobs: Callable[[Setting], Jobs]
    share: float
    """Of the time that is left, against the parts after it."""
    needed: bool = False
    """Whether other parts fail without it: then it may take all the time that is left."""


PARTS = {
    "machine": Part("The machine", machine.jobs, 1),
    "parity": Part("Parity with the paper's format: largest relative error of any image", accuracy.parity, 2),
    "shards": Part("Synthetic shards in the official format", shards.jobs, 1, needed=True),
    "steps": Part("A training step: loss and gradient of the weights", steps.jobs, 13),
    "again": Part("The first step in a new process, from the compiler's warm cache", steps.again, 2),
    "running": Part("Training as users start it", training.running, 7),
    "levels": Part("Losses and energies at each noise level, against fp32", accuracy.levels, 3),
    "loading": Part("The loader", shards.loading, 2),
    "resuming": Part("Killed, resumed, repeated", training.resuming, 5),
    "using": Part("Using a model", using.jobs, 2),
    "several": Part("Several devices", training.several, 3),
}
