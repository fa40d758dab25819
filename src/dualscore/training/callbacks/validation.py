"""Validation figures: bits/dim by the paper's protocol, the bound, losses per noise level, and references."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from dualscore.dashboard.logger import band, level
from dualscore.data.datamodule import Batch
from dualscore.errors import DataError
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood import Estimate, decibels_per_dim
from dualscore.measuring.estimators import paper
from dualscore.measuring.measured import Measured
from dualscore.measuring.row_figures import level_figures, shared_bound
from dualscore.measuring.subject import LEVELS, Rows
from dualscore.noise import corrupt
from dualscore.objective import space_loss
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback, logged_step

Tables = dict[str, Rows]
"""Rows by the names of their stages."""


class ValidationFigures(TrainingCallback):
    """Gathers a validation's rows over devices, and logs the figures that are made of them.

    `val/bits_per_dim` with log Z, which the module is given; `val/bound`; of each noise level both losses,
    the effective dimension, the denoised PSNR and what that is above others'; a histogram of log p by `show`.
    The others are the training images' Gaussian, measured on the same images with the same noise, and a
    `score_network`, whose denoised PSNR in dB is known by noise variance; `published` are bits/dim by name.
    """

    def __init__(
        self,
        published: Mapping[str, float],
        score_network: Mapping[float, float],
        show: Callable[[str, NDArray[np.float64], int], None],
    ) -> None:
        self.published, self.score_network, self.show = published, score_network, show
        self._batches: list[Tables] = []

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._batches = []

    def after_validation_batch(
        self, module: DualScoreModule, rows: Tables, batch: Batch, number: int
    ) -> None:
        gaussian = _gaussian_rows(module, batch, rows["one_level"])
        self._batches.append({**rows, "gaussian": gaussian})

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        parts, self._batches = [joined(self._batches)] if self._batches else [], []
        if trainer.world_size > 1:
            everyones: list[list[Tables]] = [[]] * trainer.world_size
            torch.distributed.all_gather_object(everyones, parts)
            parts = [part for mine in everyones for part in mine]
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None:
            _check_count(parts, min(datamodule.batching.validate_images, datamodule.counts["val"]))
        measured = replace(module.measured(), rows=joined(parts))
        if datamodule is not None:
            measured = replace(measured, photographs=partial(datamodule.photographs, "val"))
        if "paper" in measured.rows:
            self._log_energies(trainer, module, measured)
        if "one_stratum" in measured.rows:
            shared = measured.rows["one_stratum"] | measured.rows["ends"]
            groups = measured.photographs(shared["position"])
            width = math.log(module.span[1] / module.span[0]) / module.strata
            zero = Estimate(measured.zero_nats, 0.0)
            found = _finite(lambda: shared_bound(shared, width, measured.dimension, groups) + zero)
            _log(module, "val/bound", found)
        self._log_levels(module, measured)
        stationary = measured.density_bits(measured.rows["gaussian"]["energy"]).mean()
        module.log("gaussian/stationary", float(stationary))
        for name, value in self.published.items():
            module.log(f"published/{name}", value)

    def _log_energies(self, trainer: Trainer, module: DualScoreModule, measured: Measured) -> None:
        clean = measured.rows["paper"]
        log_z = _finite(lambda: measured.log_z)
        found = _finite(lambda: measured.mean(paper(measured).bits, clean["position"]) + measured.shared)
        _log(module, "val/bits_per_dim", found)
        module.log("val/log_normalizer", log_z.value)
        module.log_normalizer.fill_(log_z.value)
        if trainer.is_global_zero:
            shown = decibels_per_dim(-(clean["energy"] + log_z.value), measured.dimension)
            self.show("val/energies", shown.numpy(), logged_step(trainer))

    def _log_levels(self, module: DualScoreModule, measured: Measured) -> None:
        model, linear = (  # levels of no image are left out of both
            level_figures(measured.rows[stage], measured.levels, measured.dimension)
            for stage in ("one_level", "gaussian")
        )
        space = sum(figures.space_loss for figures in model) / len(model)
        times = [figures.time_loss for figures in model if figures.time_loss is not None]
        module.log("val/space_loss", space)
        module.log("val/loss", space + module.objective["time_weight"] * sum(times) / len(model))
        if times:
            module.log("val/time_loss", sum(times) / len(model))
        for figures, gaussian in zip(model, linear, strict=True):
            name, t = level(figures.psnr_in), figures.noise_variance
            module.log(f"space_loss/{name}", figures.space_loss)
            module.log(f"effective_dimension/{name}", figures.effective_dimension)
            module.log(f"psnr/{name}", figures.psnr_out)
            module.log(f"psnr_gain_linear/{name}", figures.psnr_out - gaussian.psnr_out)
            near = [value for at, value in self.score_network.items() if abs(at / t - 1.0) < 1e-3]
            if near:
                module.log(f"psnr_gain_score_network/{name}", figures.psnr_out - near[0])
            if figures.time_loss is not None:
                module.log(f"time_loss/{name}", figures.time_loss)


def _gaussian_rows(module: DualScoreModule, batch: Batch, one_level: Rows) -> Rows:
    """The prior's energies and, at the same levels with the same noise as the model's, its space losses."""
    prior, clean = module.prior, module.pixels(batch.image)
    at = one_level["level"]
    t = torch.tensor(module.measured().levels, dtype=torch.float64)[at].to(clean)
    noise = module.fixed_noise(batch, LEVELS).to(clean)
    noisy = corrupt(clean, noise, t)
    gradient = (noisy - prior.denoise(noisy, t)) / t[:, None, None, None]
    energy = prior(clean, torch.zeros_like(t)).energy.double()
    if module.config.data.quantized:
        # The mean over u of U(x + (u − ½)/255): each coefficient's square grows by the step's variance.
        energy = energy + 0.5 * (QUANTIZATION_VARIANCE / prior.eigenvalues.double()).sum()
    return {"level": at, "space": space_loss(gradient, noise, t), "energy": energy}


def _check_count(parts: list[Tables], asked: int) -> None:
    """Refuse figures of fewer images than were asked for, whatever ended the validation early."""
    found = sum(len(part["one_level"]["position"]) for part in parts)
    if found != asked:
        raise DataError(
            f"a validation measured {found} of {asked} images; nothing is kept of it, and the same command "
            "tries again"
        )


def joined(batches: list[Tables]) -> Tables:
    """The rows of all batches, on the CPU: figures in double precision, positions and places as they are."""
    found: Tables = {}
    for stage, names in batches[0].items():
        columns = {
            name: torch.cat([batch[stage][name] for batch in batches]).detach().cpu() for name in names
        }
        found[stage] = {n: c.double() if c.is_floating_point() else c for n, c in columns.items()}
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
