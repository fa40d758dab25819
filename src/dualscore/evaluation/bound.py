"""The bound in an evaluation: t0 and t1 chosen on training images, then measured on validation images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dualscore.evaluation.stages import Stage, ends, strata
from dualscore.evaluation.store import Rows, joined
from dualscore.likelihood.bound import BoundTerms, diffusion_energy
from dualscore.likelihood.units import STEP

PILOT_IMAGES = 128
"""Training images on which t0 and t1 are chosen; a bound stays one only if its own images do not choose."""


@dataclass(frozen=True)
class Grid:
    """Equal strata of ln t over the training range; t0 and t1 are among their edges."""

    t_min: float
    t_max: float
    number: int

    @property
    def width(self) -> float:
        """Of a stratum, in nats of ln t."""
        return math.log(self.t_max / self.t_min) / self.number

    def edge(self, index: int) -> float:
        """A noise variance, in pixel², from t_min at 0 to t_max at `number`."""
        return self.t_min * math.exp(index * self.width)

    def starts(self) -> list[int]:
        """Edges that may be t0: √t from a tenth of a step to three steps, or the lowest edge."""
        found = [i for i in range(self.number) if 0.1 * STEP <= math.sqrt(self.edge(i)) <= 3.0 * STEP]
        return found or [0]

    def stops(self) -> list[int]:
        """Edges that may be t1: those above the candidates for t0."""
        return list(range(max(self.starts()) + 1, self.number + 1))


def choose(grid: Grid, measured: Rows, outer: Rows, dimension: int) -> tuple[int, int]:
    """The edges between which the bound is tightest, on the pilot's images.

    Args:
        grid: the strata.
        measured: space losses in all strata.
        outer: decoder at all `grid.starts()`, prior at all `grid.stops()`.
        dimension: d.

    Returns:
        Indices of the edges t0 and t1.
    """
    inside = 0.5 * dimension * grid.width * measured["space"].mean(dim=0)
    decoder, prior = outer["decoder"].mean(dim=0), outer["prior"].mean(dim=0)
    totals = {
        (first, last): float(decoder[i] + inside[first:last].sum() + prior[j])
        for i, first in enumerate(grid.starts())
        for j, last in enumerate(grid.stops())
    }
    return min(totals, key=lambda pair: totals[pair])


@dataclass(frozen=True)
class Measured:
    """The bound of each image, and where it was taken."""

    position: torch.Tensor
    terms: BoundTerms
    t0: float
    t1: float
    strata: int
    evaluations: int
    """Of the network: one a stratum and one for the decoder of each image, and the pilot's."""


def measure_bound(
    run: Callable[[Stage], Rows], grid: Grid, images: int, dimension: int, shared: Rows | None
) -> Measured:
    """Choose t0 and t1 on training images, then measure validation images.

    Args:
        run: measures a stage.
        grid: the strata.
        images: validation images.
        dimension: d.
        shared: what was measured of them in all strata already, if it was of the images themselves.

    Returns:
        The bound of each image.
    """
    outer = [grid.edge(i) for i in grid.starts()], [grid.edge(i) for i in grid.stops()]
    pilot = run(strata("train", PILOT_IMAGES, grid.number, (0, grid.number), "pilot", as_trained=False))
    pilot_ends = run(ends("train", PILOT_IMAGES, *outer, "pilot_ends"))
    span = choose(grid, pilot, pilot_ends, dimension)
    t0, t1 = grid.edge(span[0]), grid.edge(span[1])
    if shared is None:
        inside = run(strata("val", images, grid.number, span, "bound_strata", as_trained=False))
        space = inside["space"]
    else:
        inside, space = shared, shared["space"][:, slice(*span)]
    ending = run(ends("val", images, [t0], [t1], "ends"))
    a, b = joined(inside, ending)
    diffusion = diffusion_energy(space[a], dimension, grid.width)
    terms = BoundTerms(ending["decoder"][b, 0], diffusion, ending["prior"][b, 0])
    used = span[1] - span[0]
    evaluations = len(a) * (used + 1) + pilot["space"].numel() + pilot_ends["decoder"].numel()
    return Measured(inside["position"][a], terms, t0, t1, used, evaluations)
