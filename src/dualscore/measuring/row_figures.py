"""From rows to figures: pure functions, the same in validation and evaluation, on any number of devices."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dualscore.likelihood import Estimate, bits, decibels_per_dim, mean
from dualscore.measuring.subject import Rows, joined
from dualscore.noise import psnr

Figure = dict[str, Any]
"""A figure of evaluation.json: value, stderr, images, evaluations, and what belongs to it."""


def plain(estimate: Estimate) -> Figure:
    """An estimate as plain values: no error is null."""
    return {"value": estimate.value, "stderr": None if math.isnan(estimate.stderr) else estimate.stderr}


def estimate_of(figure: Figure) -> Estimate:
    """The estimate that `plain` wrote, of the photographs that a figure tells."""
    stderr = figure["stderr"]
    return Estimate(figure["value"], math.nan if stderr is None else stderr, figure.get("photographs") or 0)


@dataclass(frozen=True)
class Estimated:
    """One estimate of the images' likelihood."""

    position: Tensor  # the images' positions, as in rows, shape (n,)
    bits: Tensor  # bits/dim of each, shape (n,); of an estimate of an energy, without log Z
    evaluations: int = 0  # network evaluations over all images, without those of log Z
    also: Figure = field(default_factory=dict)  # more entries of the report
    shared: Estimate | None = None  # what is the same of all images and still to be added, in bits/dim: log Z


def difference(
    one: Estimated, other: Estimated, photographs: Callable[[Tensor], Tensor | None]
) -> tuple[Estimate, int]:
    """Mean difference over the images that both have, and how many; log Z cancels where both share it.

    `photographs` maps positions (n,) to the photographs that images are of, (n,).
    """
    a, b = joined({"position": one.position}, {"position": other.position})
    found = mean(one.bits[a].double() - other.bits[b].double(), photographs(one.position[a]))
    if one.shared is not other.shared:
        nothing = Estimate(0.0, 0.0)
        found += (one.shared or nothing) - (other.shared or nothing)
    return found, len(a)


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


NO_ERROR = 1e-30  # pixel²: of images that are denoised without any, 300 dB


def level_figures(rows: Rows, variances: list[float], dimension: int) -> list[LevelSummary]:
    """Losses, denoised PSNR and effective dimension d · space loss at each noise level.

    Rows have columns (n, L), or each image has one level and they say which; levels of no image are left out.
    """
    found = []
    for place, t in enumerate(variances):
        images = rows["level"] == place if "level" in rows else (slice(None), place)
        space, time = (rows[name][images].double() if name in rows else None for name in ("space", "time"))
        if space is not None and len(space):
            loss = float(space.mean())  # training tells people of weights that are not finite
            # x̂ − x has mean square t · space loss.
            psnr_out = psnr(max(t * loss, NO_ERROR))
            time_loss = None if time is None else float(time.mean())
            found.append(
                LevelSummary(t, psnr(t), psnr_out, loss, time_loss, dimension * loss, images=len(space))
            )
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
    error, component = clean["energy"][b] - truth["energy"][a], truth["component"][a].long()
    counts = torch.bincount(component, minlength=len(weights))
    if not bool(counts.all()):
        return None
    sums = torch.zeros(len(weights), dtype=torch.float64).index_add_(0, component, error)
    model = torch.softmax(weights.double().log() - sums / counts, dim=0)
    return {"truth": weights.tolist(), "model": model.tolist(), "images": counts.tolist()}


def energy_errors(levels: Rows, log_z: Estimate, dimension: int) -> Figure:
    """How far energies at levels (n, L) are from a known density's own, at most."""
    errors = (levels["energy"] + log_z.value - levels["truth"]).abs().amax(dim=0)
    found = [decibels_per_dim(float(error), dimension) for error in errors]
    return {"largest_energy_error_db_per_dim": max(found), "energy_error_db_per_dim": found}
