"""Seconds a training step of each variant takes, measured in turns so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import lightning
from lightning.pytorch.callbacks import Callback

from dualscore.assemble import build
from dualscore.errors import ConfigError
from dualscore.settings.config import ExperimentConfig
from dualscore.terminal import quiet
from dualscore.training.trainer import accelerator

# As many steps as hold SOAP's rare ones, every tenth, in their share.
ROUNDS, WARM_UP, STEPS = 3, 3, 20


class _Stopwatch(Callback):
    """Times the steps after the first few."""

    seconds = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == WARM_UP:
            self._since = time.perf_counter()
        elif trainer.global_step == WARM_UP + STEPS:
            self.seconds = (time.perf_counter() - self._since) / STEPS


def seconds_per_step(configs: Mapping[str, ExperimentConfig]) -> dict[str, float]:
    """Time whole training steps, loader and average included, validation and logging not.

    Args:
        configs: experiments on one device, by name.

    Returns:
        Seconds a step of each: the median over rounds, in each of which all take their turn.

    Raises:
        ConfigError: if an experiment runs on several devices.
    """
    quiet()
    for name, config in configs.items():
        if config.trainer.devices * config.trainer.nodes > 1:
            raise ConfigError(f"variants.{name}: only one device can be timed; give steps instead of seconds")
    # Weights that hardly move, so that a variant which diverges can be timed too.
    still = {
        name: replace(config, optim=replace(config.optim, lr=1e-9, final_lr=0.0))
        for name, config in configs.items()
    }
    built = {name: build(config) for name, config in still.items()}
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(ROUNDS):
        for name, (module, datamodule) in built.items():
            stopwatch = _Stopwatch()
            with redirect_stderr(StringIO()):  # Lightning's remarks about what is left out on purpose
                lightning.Trainer(
                    max_steps=WARM_UP + STEPS,
                    accelerator=accelerator(configs[name]),
                    devices=1,
                    precision=configs[name].trainer.precision,  # type: ignore[arg-type]
                    limit_val_batches=0,
                    logger=False,
                    callbacks=[stopwatch],
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    use_distributed_sampler=False,
                ).fit(module, datamodule)
            times[name].append(stopwatch.seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
