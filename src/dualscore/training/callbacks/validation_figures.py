"""Validation figures: bits/dim by the paper's protocol, the bound, and losses per noise level."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from dualscore.dashboard import tags
from dualscore.dashboard.tags import band
from dualscore.likelihood import Estimate, decibels_per_dim
from dualscore.measuring.estimators import paper
from dualscore.measuring.measured import Measured
from dualscore.measuring.row_figures import shared_bound, shared_level_figures
from dualscore.measuring.subject import Rows
from dualscore.training.callbacks.references import References
from dualscore.training.callbacks.steps import logged_step
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.metrics import GatheredRows


class ValidationFigures(Callback):
    """Gathers a validation's rows over devices, and logs the figures that are made of them.

    `val/bits_per_dim` with log Z, which the module is given; `val/bound`; of each noise level both losses,
    the effective dimension, the denoised PSNR and what that is above others'; a histogram of log p.

    Args:
        references: what the PSNR is compared with.
        show: takes the histogram's name, its values and the step.
    """

    def __init__(self, references: References, show: Callable[[str, NDArray[np.float64], int], None]) -> None:
        self.references, self.show = references, show
        self._gathered: GatheredRows | None = None

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._gathered = None

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401 - what validation_step returned
        *_: object,
    ) -> None:
        rows = {name: values.to(pl_module.device) for name, values in outputs["rows"].items()}
        if self._gathered is None:
            self._gathered = GatheredRows(list(rows)).to(pl_module.device)
        self._gathered.update(rows)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        if self._gathered is None:
            return
        rows = _by_stage(self._gathered.compute())
        datamodule = getattr(trainer, "datamodule", None)
        measured = replace(pl_module.measured(), rows=rows)
        if datamodule is not None:
            measured = replace(measured, photographs=partial(datamodule.photographs, "val"))
        if "paper" in rows:
            self._energies(trainer, pl_module, measured)
        if "one_stratum" in rows:
            shared = rows["one_stratum"] | rows["ends"]
            groups = measured.photographs(shared["position"])
            width = math.log(pl_module.span[1] / pl_module.span[0]) / pl_module.strata
            bound = _finite(lambda: shared_bound(shared, width, measured.dimension, groups))
            _log(pl_module, "val/bound", bound)
        self._levels(pl_module, measured)

    def _energies(self, trainer: lightning.Trainer, module: DualScoreModule, measured: Measured) -> None:
        clean = measured.rows["paper"]
        log_z = _finite(lambda: measured.log_z)
        found = _finite(lambda: measured.mean(paper(measured).bits, clean["position"]) + measured.shared)
        _log(module, "val/bits_per_dim", found)
        module.log("val/log_normalizer", log_z.value)
        module.log_normalizer.fill_(log_z.value)
        if trainer.is_global_zero:
            shown = decibels_per_dim(-(clean["energy"] + log_z.value), measured.dimension)
            self.show("val/energies", shown.numpy(), logged_step(trainer))

    def _levels(self, module: DualScoreModule, measured: Measured) -> None:
        levels = shared_level_figures(measured.rows["one_level"], measured.levels, measured.dimension)
        if not levels:
            return
        space = sum(level.space_loss for level in levels) / len(levels)
        times = [level.time_loss for level in levels if level.time_loss is not None]
        time = sum(times) / len(levels)
        module.log("val/space_loss", space)
        module.log("val/loss", space + module.time_weight * time)
        if times:
            module.log("val/time_loss", time)
        for level in levels:
            name = tags.level(level.psnr_in)
            module.log(f"space_loss/{name}", level.space_loss)
            module.log(f"effective_dimension/{name}", level.effective_dimension)
            module.log(f"psnr/{name}", level.psnr_out)
            for reference, psnr_out in self.references.psnr(level.noise_variance).items():
                module.log(f"psnr_gain_{reference}/{name}", level.psnr_out - psnr_out)
            if level.time_loss is not None:
                module.log(f"time_loss/{name}", level.time_loss)


def _by_stage(rows: Rows) -> dict[str, Rows]:
    """Rows whose columns are named `stage/column`, as tables by stage."""
    found: dict[str, Rows] = {}
    for name, values in rows.items():
        stage, _, column = name.rpartition("/")
        if stage:
            found.setdefault(stage, {"position": rows["position"]})[column] = values
    return found


def _finite(figure: Callable[[], Estimate]) -> Estimate:
    """A figure, or NaN where a row is not finite: training says what is wrong with the weights then."""
    try:
        return figure()
    except ValueError:
        return Estimate(math.nan, math.nan)


def _log(module: DualScoreModule, tag: str, estimate: Estimate) -> None:
    """Log a figure, its standard error and its band."""
    module.log(f"{tag}_stderr", estimate.stderr)
    for name, value in band(tag, estimate):
        module.log(name, value)
