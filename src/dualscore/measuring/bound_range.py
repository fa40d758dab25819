"""Where the bound is taken: t0 and t1, chosen on images that are not reported."""

import math
from dataclasses import dataclass

from dualscore.likelihood.units import STEP
from dualscore.measuring.rows import Rows

PILOT_IMAGES = 128
"""Images on which t0 and t1 are chosen; a bound stays one only if its own images do not choose."""


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
    """The edges t0 and t1 between which the bound is tightest on the pilot's images.

    From their space losses in all strata, and the decoder at all `starts()` and the prior at all `stops()`.
    """
    inside = 0.5 * dimension * grid.width * measured["space"].mean(dim=0)
    decoder, prior = outer["decoder"].mean(dim=0), outer["prior"].mean(dim=0)
    totals = {
        (first, last): float(decoder[i] + inside[first:last].sum() + prior[j])
        for i, first in enumerate(grid.starts())
        for j, last in enumerate(grid.stops())
    }
    return min(totals, key=lambda pair: totals[pair])
