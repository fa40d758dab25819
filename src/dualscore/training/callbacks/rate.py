"""The learning rate as it is."""

import lightning
from lightning.pytorch.callbacks import Callback

from dualscore.training.callbacks.steps import ends_step, is_logged


class LearningRate(Callback):
    """Logs `train/learning_rate`, that of the network's weights, by one name whatever the optimiser."""

    def __init__(self) -> None:
        self._rate = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])  # before the schedule moves it

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if ends_step(trainer, batch_idx) and is_logged(trainer):
            pl_module.log("train/learning_rate", self._rate)
