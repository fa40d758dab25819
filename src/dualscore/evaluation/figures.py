"""From rows of measurements to figures: pure functions, so that any number of processes gives the same."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dualscore.evaluation.bound import Measured
from dualscore.evaluation.store import Rows, joined
from dualscore.likelihood import (
    Estimate,
    bits,
    decibels_per_dim,
    log_normalizer,
    mean,
    paper_bits_per_dim,
)
from dualscore.likelihood.consistency import Gap
from dualscore.training.metrics import LevelSummary, level_summary

Figure = dict[str, Any]
"""A figure of evaluation.json: value, stderr, images, evaluations, and what belongs to it."""


def plain(estimate: Estimate) -> Figure:
    """An estimate as plain values."""
    return {"value": estimate.value, "stderr": estimate.stderr}


def estimate_of(figure: Figure) -> Estimate:
    """The estimate that `plain` wrote."""
    return Estimate(figure["value"], figure["stderr"])


def normalizer(rows: Rows, dimension: int, entropy: float) -> Estimate:
    """Log Z in nats, from the rows at the largest noise variance and the noisy images' entropy there."""
    return log_normalizer(rows["energy"][:, -1], rows["noise_square"], dimension, entropy)


def paper_figure(clean: Rows, noisy: Rows, log_z: Estimate, dimension: int) -> Figure:
    """The paper's protocol, of images that stand beside the validation images."""
    images = len(clean["energy"])
    return {
        **plain(paper_bits_per_dim(clean["energy"], log_z, dimension)),
        "images": images,
        "evaluations": images + noisy["energy"].numel(),
        "log_normalizer": plain(log_z),
    }


def bound_parts(measured: Measured, dimension: int) -> Figure:
    """Where the certified bound was taken, and its three parts."""
    parts = measured.terms._asdict().items()
    return {
        "t0": measured.t0,
        "t1": measured.t1,
        "strata": measured.strata,
        "parts": {name: plain(bits(mean(part), dimension)) for name, part in parts},
    }


def level_figures(rows: Rows, variances: list[float], dimension: int) -> list[LevelSummary]:
    """Losses, denoising and effective dimension at each noise level."""
    return [
        level_summary(
            t,
            mean(rows["space"][:, j]).value,
            mean(rows["time"][:, j]).value if "time" in rows else None,
            len(rows["space"]),
            dimension,
        )
        for j, t in enumerate(variances)
    ]


class PerImage:
    """Each image's bits/dim by every estimator, for differences over the images that two of them share."""

    TRUTH = "truth"

    def __init__(self) -> None:
        self._tables: dict[str, Rows] = {}
        self._shared: dict[str, Estimate] = {}

    def add(self, name: str, position: Tensor, bits_per_dim: Tensor, shared: Estimate | None = None) -> None:
        """Add an estimator: bits/dim of each image, without what is added to all (log Z) and its error."""
        self._tables[name] = {"position": position, "figure": bits_per_dim.double()}
        self._shared[name] = shared or Estimate(0.0, 0.0)

    def names(self) -> list[str]:
        """The estimators, in the order they came."""
        return [name for name in self._tables if name != self.TRUTH]

    def difference(self, one: str, other: str) -> Estimate:
        """Mean difference over the images that both have measured; log Z cancels where both use it."""
        a, b = joined(self._tables[one], self._tables[other])
        found = mean(self._tables[one]["figure"][a] - self._tables[other]["figure"][b])
        if self._shared[one] is self._shared[other]:
            return found
        return found + (self._shared[one] - self._shared[other])

    def gaps(self) -> list[Gap]:
        """Every estimate against the next one."""
        names = self.names()
        return [Gap(f"{two} − {one}", "", self.difference(two, one)) for one, two in pairwise(names)]


def component_weights(truth: Rows, clean: Rows, weights: Tensor) -> Figure | None:
    """The weights that the energy gives a mixture's components, beside the true ones.

    Where each component has its right shape, U − U_true is constant in it, −ln(model's weight/true weight).

    Args:
        truth: true energies, and which component each image is of.
        clean: the model's energies of the same images.
        weights: the true weights, shape (K,).

    Returns:
        Both, and how many images of each component there were; None where a component had none.
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
    """The known density's own figure, and how far the energy is from its own at the noise levels."""
    figure: Figure = {**plain(mean(per_image)), "images": len(per_image)}
    if log_z is not None and "energy" in levels and "truth" in levels:
        error = levels["energy"] + log_z.value - levels["truth"]
        figure["largest_energy_error_db_per_dim"] = decibels_per_dim(float(error.abs().max()), dimension)
        figure["energy_error_db_per_dim"] = [
            decibels_per_dim(float(value), dimension) for value in error.abs().amax(dim=0)
        ]
    return figure
