"""What it costs that a run is watched: the time that guards take in a real run, of a step's."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning

from dualscore.runs.folder import Run
from dualscore.settings.experiment import load_experiment
from dualscore.train_experiment import train
from dualscore.training.callbacks import GradientHealth, Heartbeat, Saving
from dualscore.training.callbacks.progress import Throughput

HOOKS = (
    "on_before_optimizer_step",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_train_batch_end",
)
STEPS = 60


class Stopwatch(lightning.Callback):
    """The time of all steps, without the first ten."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.began = self.ended = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Begin after ten steps, end with the last."""
        if trainer.global_step == 10:
            self.spent.clear()
            self.began = time.perf_counter()
        self.ended = time.perf_counter()

    def watch(self, kind: type, name: str) -> None:
        """Add up the time of a hook."""
        original: Callable[..., Any] = getattr(kind, name)

        def timed(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever Lightning gives
            start = time.perf_counter()
            found = original(*arguments, **named)
            self.spent[kind.__name__] += time.perf_counter() - start
            return found

        setattr(kind, name, timed)


def guard_figures(data: Path) -> dict[str, float]:
    """The guards' share of a step: a run of the demo.

    Args:
        data: the demo's shards.

    Returns:
        Fractions of a step's time, by name.
    """
    settings = [
        f"data.path={data}",
        f"trainer.max_steps={STEPS}",
        f"trainer.validate_every={STEPS}",
        "optim.warmup_steps=10",
        "trainer.validate_images=64",
        "evaluate.estimators=[paper]",
        "evaluate.images=64",
        "evaluate.train_images=64",
        "evaluate.subset_images=64",
    ]
    stopwatch = Stopwatch()
    for kind in (GradientHealth, Heartbeat, Saving, Throughput):
        for name in HOOKS:
            stopwatch.watch(kind, name)
    with tempfile.TemporaryDirectory() as folder:
        train(load_experiment("patches_dual", settings), Run(Path(folder) / "run"), [stopwatch])
    seconds = stopwatch.ended - stopwatch.began
    shares = {name: spent / seconds for name, spent in stopwatch.spent.items()}
    return {"all guards, of a step's time": sum(shares.values())} | shares
