"""How probable the validation images are, one by one: a histogram at every validation."""

from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torchmetrics import CatMetric

from dualscore.likelihood import decibels_per_dim
from dualscore.training.callbacks.steps import logged_step
from dualscore.training.module import DualScoreModule


class Energies(Callback):
    """Logs the histogram `val/energies`: log p of the validation images in dB/dim, of all devices.

    It stands behind `BitsPerDim`, which gives the module its log Z. A denoiser has none. What is not finite
    is handed over too: of weights that are NaN the others tell people, and this must not fail before them.

    Args:
        show: takes a name, values and the step.
    """

    def __init__(self, show: Callable[[str, NDArray[np.float64], int], None]) -> None:
        self.show = show
        self._energies = CatMetric(nan_strategy="disable")

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._energies = CatMetric(nan_strategy="disable").to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401 - what validation_step returned
        *_: object,
    ) -> None:
        energy = outputs["figures"].energy_clean
        if energy is not None:
            self._energies.update(energy.float())

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        if not self._energies.update_called:
            return
        energies = self._energies.compute().double() + pl_module.log_normalizer
        if trainer.is_global_zero and energies.numel():
            found = decibels_per_dim(-energies, pl_module.dimension)
            self.show("val/energies", found.cpu().numpy(), logged_step(trainer))
