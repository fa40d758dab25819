"""What all callbacks of a training share."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dualscore.training.lightning_module import DualScoreModule


class TrainingCallback(Callback):
    """A callback of our module. To Lightning's hooks it adds four, called on every device.

    Call `module.log` in `after_step` only where `is_logged`, and in `after_validation`, on every device.
    """

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        """After a step of the optimiser, however many parts its batch was cut into."""

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        """Before the first batch of a validation."""

    def after_validation_batch(self, module: DualScoreModule, rows: Any, batch: Any, number: int) -> None:
        """After a batch of a validation, counted from 0, with the rows that were measured of its images."""

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        """After the last batch of a validation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if (batch[-1] + 1) % trainer.accumulate_grad_batches == 0:
            self.after_step(trainer, our_module(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before_validation(trainer, our_module(pl_module))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        outputs, images, number, *_ = batch
        self.after_validation_batch(our_module(pl_module), outputs["rows"], images, number)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after_validation(trainer, our_module(pl_module))


def our_module(module: LightningModule) -> DualScoreModule:
    """The module that Lightning hands over, by its own type."""
    assert isinstance(module, DualScoreModule)
    return module


def is_logged(trainer: Trainer) -> bool:
    """Whether the log has an entry of this step."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.global_step % every == 0


def logged_step(trainer: Trainer) -> int:
    """The step that a validation is logged at: counted from 0, as by Lightning.

    A run that resumes from the checkpoint of a validation drops what was logged at later steps.
    """
    return max(0, trainer.global_step - 1)
