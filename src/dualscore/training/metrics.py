"""Figures of a model gathered over images, batches and devices, in double precision."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from dualscore.likelihood import Estimate, bits
from dualscore.likelihood.paper import log_normalizer_of, paper_bits_per_dim_of
from dualscore.noise import psnr


class BoundDraw(NamedTuple):
    """What each image adds to the bound in validation."""

    stratum: Tensor
    """Which stratum of ln t, int64, shape (B,)."""
    space: Tensor
    """The space loss at one place in it, shape (B,)."""
    ends: Tensor
    """Decoder and prior in nats, shape (B,)."""


class ImageFigures(NamedTuple):
    """What validation measures of each image; energies and time are None for a denoiser."""

    energy_clean: Tensor | None
    """U(x, 0) in nats, shape (B,)."""
    energy_noisy: Tensor | None
    """U(y, t_max) − ½‖z‖² in nats, shape (B,)."""
    level: Tensor
    """Which noise level, int64, shape (B,)."""
    space: Tensor
    """The space loss there, shape (B,)."""
    time: Tensor | None
    """The time loss there, shape (B,)."""
    bound: BoundDraw | None
    """None where images are not 8-bit."""


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

    def estimates(self) -> list[Estimate]:
        """Mean and standard error of each quantity, over all devices, which must all call this."""
        found = self.compute()
        errors = (found["variance"] / found["count"]).sqrt()
        return [Estimate(*pair) for pair in zip(found["mean"].tolist(), errors.tolist(), strict=True)]

    def set_dtype(self, dst_type: Any) -> "Moments":  # noqa: ANN401, ARG002 - torchmetrics' signature
        """Keep double precision whatever dtype is asked for."""
        return self


class EnergyFigures:
    """Gathers energies into the paper's bits/dim.

    Args:
        dimension: d.
        entropy: of the noisy images at t_max, in nats.
        device: where the sums are kept.
    """

    def __init__(self, dimension: int, entropy: float, device: torch.device) -> None:
        self.dimension, self.entropy = dimension, entropy
        self.moments = Moments(2).to(device)

    def update(self, figures: ImageFigures) -> None:
        """Add a batch."""
        if figures.energy_clean is None or figures.energy_noisy is None:
            return
        kind = torch.zeros_like(figures.level)
        self.moments.update(kind, figures.energy_clean)
        self.moments.update(kind + 1, figures.energy_noisy)

    def summary(self) -> tuple[Estimate, float] | None:
        """Bits/dim and log Z over all devices, which must all call this; None if there are no energies."""
        if not self.moments.update_called:
            return None
        clean, around = self.moments.estimates()
        log_z = log_normalizer_of(around, self.dimension, self.entropy)
        return paper_bits_per_dim_of(clean, log_z, self.dimension), log_z.value


class BoundFigures:
    """Gathers the bound in bits/dim over images that share strata of ln t.

    Args:
        dimension: d.
        strata: number of strata.
        width: of a stratum, in nats of ln t.
        device: where the sums are kept.
    """

    def __init__(self, dimension: int, strata: int, width: float, device: torch.device) -> None:
        self.dimension, self.strata, self.width = dimension, strata, width
        self.moments = Moments(strata + 1).to(device)

    def update(self, figures: ImageFigures) -> None:
        """Add a batch."""
        if figures.bound is None:
            return
        self.moments.update(figures.bound.stratum, figures.bound.space)
        self.moments.update(torch.full_like(figures.bound.stratum, self.strata), figures.bound.ends)

    def summary(self) -> Estimate | None:
        """The bound over all devices, which must all call this; None if images are not 8-bit."""
        if not self.moments.update_called:
            return None
        *space, total = self.moments.estimates()
        for stratum in space:
            total = total + stratum * (0.5 * self.dimension * self.width)
        return bits(total, self.dimension)


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


def level_summary(
    noise_variance: float, space_loss: float, time_loss: float | None, images: int, dimension: int
) -> LevelSummary:
    """What mean losses at one noise level say: denoised PSNR and effective dimension d · space loss."""
    return LevelSummary(
        noise_variance=noise_variance,
        psnr_in=psnr(noise_variance),
        # x̂ − x has mean square t · space loss.
        psnr_out=psnr(noise_variance * space_loss) if space_loss > 0 else math.nan,
        space_loss=space_loss,
        time_loss=time_loss,
        effective_dimension=dimension * space_loss,
        images=images,
    )


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
        return [
            level_summary(
                t,
                mean[i],
                mean[i + len(self.levels)] if count[i + len(self.levels)] else None,
                int(count[i]),
                self.dimension,
            )
            for i, t in enumerate(self.levels)
            if count[i]
        ]
