"""Lightning's Trainer and logger as experiments want them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.tensorboard.summary import hparams

from dualscore.callbacks import ProgressBar
from dualscore.checkpoint_io import AtomicCheckpointIO
from dualscore.config import ExperimentConfig
from dualscore.errors import TrainingError
from dualscore.runs import Run, flatten


def accelerator(config: ExperimentConfig) -> str:
    """What an experiment runs on here, as Lightning calls it."""
    wanted = config.trainer.accelerator
    return "cuda" if wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


class PatientLogger(TensorBoardLogger):
    """A TensorBoard log whose writing may fail, as on a full disk: a warning, and training goes on.

    Args:
        folder: the run's.
        step: entries from this step on are dropped, because they are logged again; 0 for none.
        warn: told once, until writing works again.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]) -> None:
        super().__init__(
            folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step or None
        )
        self._warn, self._lost = warn, False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # noqa: ANN401 - Lightning's
        """Log, if that can be written."""
        with self._patience():
            super().log_metrics(metrics, step)
            self._lost = False

    @rank_zero_only
    def log_picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Log a picture (height, width, 3), if that can be written."""
        with self._patience():
            self.experiment.add_image(name, picture, step, dataformats="HWC")

    def save(self) -> None:
        """Flush, if that can be written."""
        with self._patience():
            super().save()

    def finalize(self, status: str) -> None:
        """Close, if that can be written.

        Args:
            status: how the run ended.
        """
        with self._patience():
            super().finalize(status)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # what Lightning makes of any error
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            self._experiment = None  # whose thread is dead; the next entry opens another file
            if not self._lost:
                self._lost = True
                self._warn(
                    f"{self.log_dir}: not written ({cause.strerror or cause}); training goes on, unlogged"
                )


def make_trainer(
    config: ExperimentConfig,
    run: Run,
    callbacks: list[Callback],
    console: Console,
    io: AtomicCheckpointIO,
    logger: TensorBoardLogger,
) -> lightning.Trainer:
    """Build the Trainer; no inference mode, because scores are gradients, in validation too.

    Args:
        config: the experiment.
        run: its folder.
        callbacks: in the order in which they are called.
        console: where a progress bar is drawn, if it is a terminal.
        io: what writes checkpoints.
        logger: what is logged to.

    Returns:
        The Trainer.

    Raises:
        TrainingError: if the devices asked for are not there.
    """
    options = config.trainer
    if console.is_terminal:
        callbacks = [*callbacks, ProgressBar()]
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
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
        )
    except lightning.fabric.utilities.exceptions.MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"trainer.devices={options.devices}, trainer.accelerator={options.accelerator}: {reason:.200}"
        ) from error


def log_settings(logger: TensorBoardLogger, plain: dict[str, Any], metric: str) -> None:
    """Put the settings beside the figure that runs are compared by, which gets its values later."""
    settings = {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in flatten(plain).items()
    }
    for summary in hparams(settings, {metric: 0.0}):  # type: ignore[no-untyped-call]
        logger.experiment._get_file_writer().add_summary(summary)
