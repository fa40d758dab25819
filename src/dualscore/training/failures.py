"""What libraries raise in training, in words for people."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning
import torch

from dualscore.errors import DivergenceError, StoppedError, TrainingError
from dualscore.runs.watchdog import Watchdog
from dualscore.settings.config import ExperimentConfig
from dualscore.terminal.hints import afresh
from dualscore.training.memory import advice, is_out_of_memory

LAST = 3.0
"""Seconds that the first process of a stopped group leaves the others, whose launchers look at its status."""


@contextmanager
def told_to_people(
    trainer: lightning.Trainer, config: ExperimentConfig, watchdog: Watchdog
) -> Iterator[None]:
    """Turn what training raises into errors of ours, where it is known what they mean.

    Args:
        trainer: what trains.
        config: the experiment.
        watchdog: knows where the other devices are.

    Yields:
        Nothing.

    Raises:
        TrainingError: if memory ran out, the compiler failed, or another device's process ended.
        DivergenceError: if the optimiser overflows.
        KeyboardInterrupt: if that is what ended training.
        StoppedError: as it came.
        RuntimeError: as it came, if nothing is known of it.
        SystemExit: as it came.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        # SOAP's, of gradients that are finite but absurd.
        raise DivergenceError(
            f"step {trainer.global_step}: the optimiser's preconditioner overflows; the last good checkpoint "
            f"is kept; try a smaller optim.lr with {afresh()}"
        ) from error
    except RuntimeError as error:
        if (known := _known(error, trainer, config, watchdog)) is None:
            raise
        raise known from error
    except StoppedError:
        if trainer.world_size > 1 and trainer.is_global_zero:
            time.sleep(LAST)
        raise
    except SystemExit as exit_:  # Lightning's answer to Ctrl-C
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from exit_


def _known(
    error: RuntimeError,
    trainer: lightning.Trainer,
    config: ExperimentConfig,
    watchdog: Watchdog,
) -> TrainingError | None:
    """What to say of an error; None where it must be shown whole."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = " ".join(str(error).split())
        return TrainingError(
            f"trainer.compile: torch.compile failed ({reason:.200}); trainer.compile=false trains without"
        )
    if is_out_of_memory(error):
        batch = config.data.batch_size // trainer.world_size
        return TrainingError(
            f"step {trainer.global_step}: {batch // config.trainer.accumulate} images at once do not fit "
            f"into the memory of a device; {advice(batch, config.trainer.accumulate)}"
        )
    if trainer.world_size > 1 and (gone := watchdog.silent()):
        return TrainingError(
            f"step {trainer.global_step}: {', '.join(map(str, gone))} ended, and training with it; the same "
            f"command goes on from the last checkpoint ({' '.join(str(error).split()):.200})"
        )
    return None
