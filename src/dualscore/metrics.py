"""Figures of a model gathered over images, batches and devices, in double precision."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from dualscore.likelihood import Estimate, log_normalizer, paper_bits_per_dim
from dualscore.noise import psnr


class ImageFigures(NamedTuple):
    """What validation and evaluation measure of each image; energies and time are None for a denoiser."""

    energy_clean: Tensor | None
    """U(x, 0) in nats, shape (B,)."""
    energy_noisy: Tensor | None
    """U(y, t_max) in nats, shape (B,)."""
    level: Tensor
    """Which noise level, int64, shape (n,)."""
    space: Tensor
    """The space loss there, shape (n,)."""
    time: Tensor | None
    """The time loss there, shape (n,)."""


class Moments(Metric):
    """Count, mean and unbiased variance of several quantities.

    The states are sums in double precision, which are exact enough under any number of ranks.

    Args:
        quantities: how many quantities are tracked.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, quantities: int) -> None:
        super().__init__()
        for name in ("count", "total", "square"):
            self.add_state(name, torch.zeros(quantities, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, quantity: Tensor, values: Tensor) -> None:
        """Add values.

        Args:
            quantity: which quantity each value belongs to, int64, shape (B,).
            values: the values, shape (B,).
        """
        values = values.detach().double()
        self.count.index_add_(0, quantity, torch.ones_like(values))
        self.total.index_add_(0, quantity, values)
        self.square.index_add_(0, quantity, values.square())

    def compute(self) -> dict[str, Tensor]:
        """`count`, `mean` and `variance`, each of shape (quantities,); NaN where nothing was added."""
        mean = self.total / self.count
        variance = (self.square - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        return {"count": self.count.clone(), "mean": mean, "variance": variance}

    def set_dtype(self, dst_type: Any) -> "Moments":  # noqa: ANN401, ARG002 - torchmetrics' signature
        """Keep double precision whatever dtype is asked for."""
        return self


@dataclass(frozen=True)
class EnergySummary:
    """The paper's likelihood figures over a set of images."""

    images: int
    bits_per_dim: Estimate
    log_normalizer: float


class EnergyFigures:
    """Gathers energies into the paper's bits/dim.

    Args:
        dimension: d.
        t_max: the variance at which `energy_noisy` is taken, in pixel².
        device: where the sums are kept.
    """

    def __init__(self, dimension: int, t_max: float, device: torch.device) -> None:
        self.dimension, self.t_max = dimension, t_max
        self.moments = Moments(2).to(device)

    def update(self, figures: ImageFigures) -> None:
        """Add a batch."""
        if figures.energy_clean is None or figures.energy_noisy is None:
            return
        noisy = figures.energy_noisy.double()
        rise = figures.energy_clean.double() - noisy
        kind = torch.zeros_like(noisy, dtype=torch.int64)
        self.moments.update(torch.cat([kind, kind + 1]), torch.cat([rise, noisy]))

    def summary(self) -> EnergySummary | None:
        """The figures over all devices, which must all call this; None if the model has no energies."""
        if not self.moments.update_called:
            return None
        moments = self.moments.compute()
        images = int(moments["count"][0])
        rise, variance = float(moments["mean"][0]), float(moments["variance"][0])
        return EnergySummary(
            images,
            paper_bits_per_dim(rise, variance, images, self.dimension, self.t_max),
            log_normalizer(float(moments["mean"][1]), self.dimension, self.t_max),
        )


@dataclass(frozen=True)
class LevelSummary:
    """Losses at one noise level; the time loss is None for a denoiser."""

    noise_variance: float
    psnr_in: float
    psnr_out: float
    space_loss: float
    time_loss: float | None
    effective_dimension: float
    images: int


class LevelFigures:
    """Gathers losses per noise level.

    Args:
        dimension: d.
        levels: noise variances in pixel².
        device: where the sums are kept.
    """

    def __init__(self, dimension: int, levels: list[float], device: torch.device) -> None:
        self.dimension, self.levels = dimension, levels
        self.moments = Moments(2 * len(levels)).to(device)

    def update(self, figures: ImageFigures) -> None:
        """Add a batch."""
        self.moments.update(figures.level, figures.space)
        if figures.time is not None:
            self.moments.update(figures.level + len(self.levels), figures.time)

    def summary(self) -> list[LevelSummary]:
        """The levels that were measured, over all devices, which must all call this."""
        moments = self.moments.compute()
        mean, count = moments["mean"].tolist(), moments["count"].tolist()
        summaries = []
        for i, t in enumerate(self.levels):
            j = i + len(self.levels)
            if count[i]:
                summaries.append(
                    LevelSummary(
                        noise_variance=t,
                        psnr_in=psnr(t),
                        # x̂ − x has mean square t · space loss.
                        psnr_out=psnr(t * mean[i]) if mean[i] > 0 else math.nan,
                        space_loss=mean[i],
                        time_loss=mean[j] if count[j] else None,
                        effective_dimension=self.dimension * mean[i],
                        images=int(count[i]),
                    )
                )
        return summaries
