"""Lightning's Trainer as experiments want it, and what its errors mean."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from dualscore.data.loader import deaths_told
from dualscore.devices import allow_tf32
from dualscore.errors import DivergenceError, StoppedError, TrainingError
from dualscore.files.plain_text import one_line
from dualscore.runs.folder import Run
from dualscore.runs.launch import TORCHRUN, by_srun
from dualscore.runs.watchdog import Watchdog
from dualscore.settings.config import ExperimentConfig
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.optimizers import compiled_loss, obstacle

LAST = 3.0
"""Seconds that the first process of a stopped group leaves the others, whose launchers look at its status."""


def accelerator(config: ExperimentConfig) -> str:
    """What an experiment runs on here, as Lightning calls it: never a Mac's MPS, which has no float64."""
    wanted = config.trainer.accelerator
    return "cuda" if wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


def prepare_device(config: ExperimentConfig, module: DualScoreModule, note: Callable[[str], None]) -> None:
    """Settle how training computes, and say so where it is not as asked for; a TrainingError if it cannot."""
    options, device = config.trainer, accelerator(config)
    if options.precision == "bf16-mixed" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise TrainingError(
            f"trainer.precision=bf16-mixed: {torch.cuda.get_device_name()} has no bfloat16; use 32-true, "
            "with trainer.tf32=true where the GPU has that"
        )
    allow_tf32(options.tf32)
    if options.compile and (missing := obstacle(device)):
        note(f"trainer.compile: {missing}; training goes on without, correct but slower")
    elif options.compile:
        module.loss = compiled_loss(device)


def launched_by() -> list[Any]:
    """A plugin that says who started this process; none where Lightning sees that for itself."""
    if by_srun(os.environ):
        # Lightning's own requeueing leaves checkpoints that a later, unrelated run would take for its own.
        return [SLURMEnvironment(auto_requeue=False)]
    # Lightning would take a process for a task of any job whose variables it finds (Slurm's, LSF's).
    return [] if TORCHRUN in os.environ else [LightningEnvironment()]


def make_trainer(
    config: ExperimentConfig, run: Run, callbacks: list[Callback], io: CheckpointIO, logger: TensorBoardLogger
) -> Trainer:
    """A Trainer without inference mode, because scores are gradients, in validation too.

    A TrainingError says that the devices asked for are not there.
    """
    options = config.trainer
    try:
        return Trainer(
            default_root_dir=run.folder,
            max_steps=options.max_steps,
            max_epochs=-1,
            accelerator=accelerator(config),
            devices=options.devices,
            num_nodes=options.nodes,
            # Ranks may validate different numbers of batches, so buffers must not be broadcast in forward.
            strategy=DDPStrategy(broadcast_buffers=False) if options.devices * options.nodes > 1 else "auto",
            precision=options.precision,  # type: ignore[arg-type]
            plugins=[io, *launched_by()],
            logger=logger,
            enable_checkpointing=True,
            callbacks=callbacks,
            accumulate_grad_batches=options.accumulate,
            # Lightning counts parts of batches here
            val_check_interval=min(options.validate_every, options.max_steps) * options.accumulate,
            check_val_every_n_epoch=None,
            log_every_n_steps=min(options.log_every, options.max_steps),
            num_sanity_val_steps=0,
            inference_mode=False,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        asked = f"trainer.devices={options.devices}, trainer.accelerator={options.accelerator}"
        raise TrainingError(f"{asked}: {one_line(error):.200}") from error


def diverged(what: str) -> DivergenceError:
    """The error of a run that cannot go on, because something is not finite."""
    return DivergenceError(f"{what}; the last good checkpoint is kept; try a smaller optim.lr with --fresh")


@contextmanager
def errors_for_people(trainer: Trainer, config: ExperimentConfig, watchdog: Watchdog) -> Iterator[None]:
    """Turn what training raises into errors of ours, where it is known what they mean."""
    try:
        with deaths_told():
            yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        # SOAP's, of gradients that are finite but absurd.
        raise diverged(f"step {trainer.global_step}: the optimiser's preconditioner overflows") from error
    except RuntimeError as error:
        if known := _known(error, trainer, config, watchdog):
            raise TrainingError(known) from error
        raise
    except StoppedError:
        if trainer.world_size > 1 and trainer.is_global_zero:
            time.sleep(LAST)
        raise
    except SystemExit as exit_:  # Lightning's answer to Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from exit_
        raise


def _known(error: RuntimeError, trainer: Trainer, config: ExperimentConfig, watchdog: Watchdog) -> str:
    """What to say of an error; nothing where it must be shown whole."""
    step, parts = trainer.global_step, config.trainer.accumulate
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return (
            f"trainer.compile: torch.compile failed ({one_line(error):.200}); trainer.compile=false trains "
            "without"
        )
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        batch = config.data.batch_size // trainer.world_size
        return (
            f"step {step}: {batch // parts} images at once do not fit into the memory of a device; "
            f"{memory_advice(batch, parts)}"
        )
    if trainer.world_size > 1 and (gone := watchdog.silent()):
        return (
            f"step {step}: {', '.join(map(str, gone))} ended, and training with it; "
            f"{Run(Path(trainer.default_root_dir)).goes_on()} ({one_line(error):.200})"
        )
    return ""


def memory_advice(batch: int, accumulate: int) -> str:
    """What may fit where a device's batch, cut into `accumulate` parts, does not: the next smaller parts."""
    more = next((parts for parts in range(accumulate + 1, batch + 1) if batch % parts == 0), None)
    if more is None:
        return "make the network smaller (network.width) or the images"
    return f"trainer.accumulate={more} makes the same step in parts of {batch // more}"
