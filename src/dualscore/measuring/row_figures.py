"""From rows to figures: pure functions, the same in validation and evaluation, on any number of devices."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualscore.likelihood import Estimate, bits, decibels_per_dim, mean
from dualscore.measuring.subject import Rows, joined
from dualscore.noise import psnr

Figure = dict[str, Any]
"""A figure of evaluation.json: value, stderr, images, evaluations, and what belongs to it."""


def plain(estimate: Estimate) -> Figure:
    """An estimate as plain values: no error is null, and photographs are counted where they are known."""
    stderr = None if math.isnan(estimate.stderr) else estimate.stderr
    return {"value": estimate.value, "stderr": stderr}


def estimate_of(figure: Figure) -> Estimate:
    """The estimate that `plain` wrote."""
    stderr = figure["stderr"]
    return Estimate(figure["value"], math.nan if stderr is None else stderr, figure.get("photographs") or 0)


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


def level_summary(t: float, space: Tensor, time: Tensor | None, dimension: int) -> LevelSummary:
    """What losses (n,) at one noise level say: denoised PSNR and effective dimension d · space loss."""
    loss = float(space.double().mean())  # training tells people of weights that are not finite
    return LevelSummary(
        noise_variance=t,
        psnr_in=psnr(t),
        # x̂ − x has mean square t · space loss.
        psnr_out=psnr(t * loss) if loss > 0 else math.nan,
        space_loss=loss,
        time_loss=None if time is None else float(time.double().mean()),
        effective_dimension=dimension * loss,
        images=len(space),
    )


def level_figures(rows: Rows, variances: list[float], dimension: int) -> list[LevelSummary]:
    """Losses, denoising and effective dimension at each noise level, of rows with columns (n, L)."""
    times = rows["time"].unbind(1) if "time" in rows else [None] * len(variances)
    return [
        level_summary(t, space, time, dimension)
        for t, space, time in zip(variances, rows["space"].unbind(1), times, strict=True)
    ]


def shared_level_figures(rows: Rows, variances: list[float], dimension: int) -> list[LevelSummary]:
    """The same of rows in which each image has one level; levels of no image are left out."""
    found = []
    for place, t in enumerate(variances):
        mine = rows["level"] == place
        if bool(mine.any()):
            time = rows["time"][mine] if "time" in rows else None
            found.append(level_summary(t, rows["space"][mine], time, dimension))
    return found


def shared_bound(rows: Rows, width: float, dimension: int, groups: Tensor | None) -> Estimate:
    """The bound in bits/dim over images that share strata of ln t, with its error over photographs.

    Rows hold `stratum` and `stratum_space` (n,), `decoder` and `prior` (n, 1); a stratum is `width` nats
    wide; groups, (n,), tell which photograph each image is of.
    """
    values = (rows["decoder"][:, 0] + rows["prior"][:, 0]).double()
    factor, inside = 0.5 * dimension * width, 0.0
    for stratum in torch.unique(rows["stratum"]):
        mine = rows["stratum"] == stratum
        space = rows["stratum_space"][mine].double()
        inside += factor * float(space.mean())
        # What an image moves the sum by: a stratum's mean is over few of the images.
        values[mine] += factor * len(values) / len(space) * (space - space.mean())
    found = mean(values, groups)
    return bits(Estimate(found.value + inside, found.stderr, found.groups), dimension)


def component_weights(truth: Rows, clean: Rows, weights: Tensor) -> Figure | None:
    """The weights that the energy gives a mixture's components, beside the true ones (K,).

    Where each component has its right shape, U − U_true is constant in it, −ln(model's weight/true weight).
    None where a component had no images.
    """
    a, b = joined(truth, clean)
    error, component = clean["energy"][b] - truth["energy"][a], truth["component"][a]
    counts = torch.bincount(component.long(), minlength=len(weights))
    if not bool(counts.all()):
        return None
    sums = torch.zeros(len(weights), dtype=torch.float64).index_add_(0, component.long(), error)
    log_weights = weights.double().log() - sums / counts
    model = torch.softmax(log_weights, dim=0)
    return {"truth": weights.tolist(), "model": model.tolist(), "images": counts.tolist()}


def truth_figures(per_image: Tensor, levels: Rows, log_z: Estimate | None, dimension: int) -> Figure:
    """The known density's bits/dim, shape (n,), and how far energies at levels (n, L) are from its own."""
    figure: Figure = {**plain(mean(per_image)), "images": len(per_image)}
    if log_z is not None and "energy" in levels and "truth" in levels:
        error = levels["energy"] + log_z.value - levels["truth"]
        figure["largest_energy_error_db_per_dim"] = decibels_per_dim(float(error.abs().max()), dimension)
        figure["energy_error_db_per_dim"] = [
            decibels_per_dim(float(value), dimension) for value in error.abs().amax(dim=0)
        ]
    return figure


class PerImage:
    """Each image's bits/dim by every estimator, for differences over the images that two of them share."""

    TRUTH = "truth"

    def __init__(self, photographs: Callable[[Tensor], Tensor | None]) -> None:
        self._photographs = photographs
        self._tables: dict[str, Rows] = {}
        self._shared: dict[str, Estimate] = {}

    def add(self, name: str, position: Tensor, bits_per_dim: Tensor, shared: Estimate | None = None) -> None:
        """Add an estimator: bits/dim of each image, shape (n,), without what all share: log Z."""
        self._tables[name] = {"position": position, "figure": bits_per_dim.double()}
        self._shared[name] = shared or Estimate(0.0, 0.0)

    def difference(self, one: str, other: str) -> Estimate:
        """Mean difference over the images that both have measured; log Z cancels where both use it."""
        a, b = joined(self._tables[one], self._tables[other])
        values = self._tables[one]["figure"][a] - self._tables[other]["figure"][b]
        found = mean(values, self._photographs(self._tables[one]["position"][a]))
        if self._shared[one] is self._shared[other]:
            return found
        return found + (self._shared[one] - self._shared[other])
