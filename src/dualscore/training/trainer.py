"""Lightning's Trainer and logger as experiments want them."""

from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from dualscore.errors import TrainingError
from dualscore.runs.checkpoint_io import AtomicCheckpointIO
from dualscore.runs.folder import Run
from dualscore.settings.config import ExperimentConfig


def accelerator(config: ExperimentConfig) -> str:
    """What an experiment runs on here, as Lightning calls it."""
    wanted = config.trainer.accelerator
    return "cuda" if wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


def make_trainer(
    config: ExperimentConfig,
    run: Run,
    callbacks: list[Callback],
    io: AtomicCheckpointIO,
    logger: TensorBoardLogger,
) -> lightning.Trainer:
    """Build the Trainer; no inference mode, because scores are gradients, in validation too.

    Args:
        config: the experiment.
        run: its folder.
        callbacks: in the order in which they are called.
        io: what writes checkpoints.
        logger: what is logged to.

    Returns:
        The Trainer.

    Raises:
        TrainingError: if the devices asked for are not there.
    """
    options = config.trainer
    plugins: list[Any] = [io]
    if SLURMEnvironment.detect():
        # Lightning's own requeueing leaves checkpoints that a later, unrelated run would take for its own.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        return lightning.Trainer(
            default_root_dir=run.folder,
            max_steps=options.max_steps,
            max_epochs=-1,
            accelerator=accelerator(config),
            devices=options.devices,
            num_nodes=options.nodes,
            # Ranks may validate different numbers of batches, so buffers must not be broadcast in forward.
            strategy=DDPStrategy(broadcast_buffers=False) if options.devices * options.nodes > 1 else "auto",
            precision=options.precision,  # type: ignore[arg-type]
            plugins=plugins,
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
    except lightning.fabric.utilities.exceptions.MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"trainer.devices={options.devices}, trainer.accelerator={options.accelerator}: {reason:.200}"
        ) from error
