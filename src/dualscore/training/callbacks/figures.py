"""Validation figures: bits/dim by the paper's protocol, the bound, and losses per noise level."""

import math
from typing import Any, Generic, TypeVar

import lightning
from lightning.pytorch.callbacks import Callback

from dualscore.dashboard import tags
from dualscore.dashboard.tags import band
from dualscore.likelihood import Estimate
from dualscore.likelihood.bound import bound_range
from dualscore.training.callbacks.references import References
from dualscore.training.metrics import BoundFigures, EnergyFigures, LevelFigures
from dualscore.training.module import DualScoreModule

Figures = TypeVar("Figures", EnergyFigures, BoundFigures, LevelFigures)


class _ValidationCallback(Callback, Generic[Figures]):
    """Gathers figures over a validation and reports them at its end."""

    figures: Figures

    def make(self, module: DualScoreModule) -> Figures:
        """Empty figures for a validation."""
        raise NotImplementedError

    def report(self, module: DualScoreModule) -> None:
        """Log what was gathered; called on every device."""
        raise NotImplementedError

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        self.figures = self.make(pl_module)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401 - what validation_step returned
        *_: object,
    ) -> None:
        self.figures.update(outputs["figures"])

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        self.report(pl_module)


def _log(module: DualScoreModule, tag: str, estimate: Estimate) -> None:
    """Log a figure, its standard error and its band."""
    module.log(f"{tag}_stderr", estimate.stderr)
    for name, value in band(tag, estimate):
        module.log(name, value)


class BitsPerDim(_ValidationCallback[EnergyFigures]):
    """Logs `val/bits_per_dim` with its standard error and log Z, and gives the module its log Z."""

    def make(self, module: DualScoreModule) -> EnergyFigures:
        return EnergyFigures(module.dimension, float(module.prior.entropy(module.t_range[1])), module.device)

    def report(self, module: DualScoreModule) -> None:
        summary = self.figures.summary()
        if summary is None:
            return
        bits_per_dim, log_normalizer = summary
        _log(module, "val/bits_per_dim", bits_per_dim)
        module.log("val/log_normalizer", log_normalizer)
        module.log_normalizer.fill_(log_normalizer)


class Bound(_ValidationCallback[BoundFigures]):
    """Logs `val/bound`, the certified bound in bits/dim, with its standard error."""

    def make(self, module: DualScoreModule) -> BoundFigures:
        t0, t1 = bound_range(module.t_range)
        width = math.log(t1 / t0) / module.strata
        return BoundFigures(module.dimension, module.strata, width, module.device)

    def report(self, module: DualScoreModule) -> None:
        bound = self.figures.summary()
        if bound is not None:
            _log(module, "val/bound", bound)


class NoiseCurves(_ValidationCallback[LevelFigures]):
    """Logs what each noise level says, and the losses' means over levels.

    Of a level: both losses, the effective dimension, the denoised PSNR and what that is above the best linear
    denoiser's and, where there is one, a score network's.

    Args:
        references: what the PSNR is compared with.
    """

    def __init__(self, references: References) -> None:
        self.references = references

    def make(self, module: DualScoreModule) -> LevelFigures:
        return LevelFigures(module.dimension, module.levels.tolist(), module.device)

    def report(self, module: DualScoreModule) -> None:
        levels = self.figures.summary()
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
