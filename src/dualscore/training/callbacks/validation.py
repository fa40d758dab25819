"""Validation figures: bits/dim by the paper's protocol, the bound, losses per noise level, and references."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from dualscore.dashboard.logger import band, level
from dualscore.data.datamodule import Batch
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood import Estimate, bits_per_dim, decibels_per_dim, dequantized_bits_per_dim
from dualscore.measuring.estimators import paper
from dualscore.measuring.measured import Measured
from dualscore.measuring.row_figures import shared_bound, shared_level_figures
from dualscore.measuring.subject import Rows
from dualscore.noise import corrupt, psnr
from dualscore.objective import space_loss
from dualscore.training.callbacks.training_callback import TrainingCallback, logged_step
from dualscore.training.lightning_module import DualScoreModule


class _DoubleMetric(Metric):
    """A metric that stays in double precision, whatever dtype the module is converted to."""

    full_state_update = False

    def set_dtype(self, dst_type: Any) -> "_DoubleMetric":
        return self


class Moments(_DoubleMetric):
    """Count, mean and unbiased variance of several quantities, over batches and devices."""

    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, quantities: int) -> None:
        super().__init__()
        for name in ("count", "total", "square"):
            self.add_state(name, torch.zeros(quantities, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, quantity: Tensor, values: Tensor) -> None:
        """Add values (B,), each of a quantity, int64 (B,)."""
        values = values.detach().double()
        self.count.index_add_(0, quantity, torch.ones_like(values))
        self.total.index_add_(0, quantity, values)
        self.square.index_add_(0, quantity, values.square())

    def compute(self) -> dict[str, Tensor]:
        """`count`, `mean` and `variance`, each of shape (quantities,); NaN where nothing was added."""
        mean = self.total / self.count
        variance = (self.square - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        return {"count": self.count.clone(), "mean": mean, "variance": variance}


class GatheredRows(_DoubleMetric):
    """Rows of all devices, with these columns."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        for place in range(len(names)):  # states are attributes, and columns have dots and slashes
            self.add_state(f"column_{place}", [], dist_reduce_fx="cat")

    def update(self, rows: Rows) -> None:
        """Add a batch's rows."""
        for place, name in enumerate(self.names):
            values = rows[name].detach()
            getattr(self, f"column_{place}").append(values if name == "position" else values.double())

    def compute(self) -> Rows:
        """The rows of all devices, on the CPU; every device must call this."""
        columns = (getattr(self, f"column_{place}") for place in range(len(self.names)))
        joined = (torch.cat(c) if isinstance(c, list) else c for c in columns)
        return dict(zip(self.names, (values.cpu() for values in joined), strict=True))


class References(TrainingCallback):
    """Logs `gaussian/stationary` and `published/…`, and knows what others denoise to.

    The training images' Gaussian is measured in the first validation, on the same images with the same noise
    as the model; later ones have the same. `score_network` is a network's denoised PSNR by noise variance.
    """

    def __init__(self, published: Mapping[str, float], score_network: Mapping[float, float]) -> None:
        self.published, self.score_network = published, score_network
        self._measuring: Moments | None = None
        self._figures: list[float] = []
        self._linear: dict[float, float] = {}
        self._stationary = math.nan

    def psnr(self, noise_variance: float) -> dict[str, float]:
        """Denoised PSNR in dB at a noise variance, of `linear` and `score_network` where they are known."""
        found = {}
        if (linear := self._linear.get(round(psnr(noise_variance), 3))) is not None:
            found["linear"] = linear
        near = [value for t, value in self.score_network.items() if abs(t / noise_variance - 1.0) < 1e-3]
        return found | ({"score_network": near[0]} if near else {})

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        if not self._figures:
            self._measuring = Moments(len(module.levels) + 1).to(module.device)

    def after_validation_batch(self, module: DualScoreModule, rows: Rows, batch: Batch, number: int) -> None:
        if self._measuring is None:
            return
        prior = module.prior
        clean = module.pixels(batch.image)
        at = batch.ordinal % len(module.levels)
        t = module.levels.to(clean)[at.to(module.levels.device)]
        noise = module.fixed_noise(batch, 1).to(clean)
        noisy = corrupt(clean, noise, t)
        gradient = (noisy - prior.denoise(noisy, t)) / t[:, None, None, None]
        self._measuring.update(at, space_loss(gradient, noise, t))
        energy = prior(clean, torch.zeros_like(t)).energy.double()
        if module.quantized:
            # The mean over u of U(x + (u − ½)/255): each coefficient's square grows by the step's variance.
            energy = energy + 0.5 * (QUANTIZATION_VARIANCE / prior.eigenvalues.double()).sum()
        self._measuring.update(torch.full_like(at, len(module.levels)), energy)

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        if self._measuring is not None:
            self._figures = self._measuring.compute()["mean"].tolist()
            self._measuring = None
            *losses, energy = self._figures
            levels = zip(module.levels.tolist(), losses, strict=True)
            # A level that no image had has no figure.
            self._linear = {round(psnr(t), 3): psnr(t * loss) for t, loss in levels if loss > 0}
            convert = dequantized_bits_per_dim if module.quantized else bits_per_dim
            nats = torch.tensor(energy, dtype=torch.float64)
            self._stationary = float(convert(nats, module.dimension))
        module.log("gaussian/stationary", self._stationary)
        for name, value in self.published.items():
            module.log(f"published/{name}", value)


class ValidationFigures(TrainingCallback):
    """Gathers a validation's rows over devices, and logs the figures that are made of them.

    `val/bits_per_dim` with log Z, which the module is given; `val/bound`; of each noise level both losses,
    the effective dimension, the denoised PSNR and what that is above others'; a histogram of log p.
    """

    def __init__(self, references: References, show: Callable[[str, NDArray[np.float64], int], None]) -> None:
        self.references, self.show = references, show
        self._gathered: GatheredRows | None = None

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._gathered = None

    def after_validation_batch(self, module: DualScoreModule, rows: Rows, batch: Batch, number: int) -> None:
        rows = {name: values.to(module.device) for name, values in rows.items()}
        if self._gathered is None:
            self._gathered = GatheredRows(list(rows)).to(module.device)
        self._gathered.update(rows)

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        if self._gathered is None:
            return
        rows = _by_stage(self._gathered.compute())
        datamodule = getattr(trainer, "datamodule", None)
        measured = replace(module.measured(), rows=rows)
        if datamodule is not None:
            measured = replace(measured, photographs=partial(datamodule.photographs, "val"))
        if "paper" in rows:
            self._log_energies(trainer, module, measured)
        if "one_stratum" in rows:
            shared = rows["one_stratum"] | rows["ends"]
            groups = measured.photographs(shared["position"])
            width = math.log(module.span[1] / module.span[0]) / module.strata
            bound = _finite(lambda: shared_bound(shared, width, measured.dimension, groups))
            _log(module, "val/bound", bound)
        self._log_levels(module, measured)

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
        found = shared_level_figures(measured.rows["one_level"], measured.levels, measured.dimension)
        if not found:
            return
        space = sum(figures.space_loss for figures in found) / len(found)
        times = [figures.time_loss for figures in found if figures.time_loss is not None]
        time = sum(times) / len(found)
        module.log("val/space_loss", space)
        module.log("val/loss", space + module.objective["time_weight"] * time)
        if times:
            module.log("val/time_loss", time)
        for figures in found:
            name = level(figures.psnr_in)
            module.log(f"space_loss/{name}", figures.space_loss)
            module.log(f"effective_dimension/{name}", figures.effective_dimension)
            module.log(f"psnr/{name}", figures.psnr_out)
            for reference, psnr_out in self.references.psnr(figures.noise_variance).items():
                module.log(f"psnr_gain_{reference}/{name}", figures.psnr_out - psnr_out)
            if figures.time_loss is not None:
                module.log(f"time_loss/{name}", figures.time_loss)


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
