"""Everything that was measured of a model: rows, what it takes to read them, and where the bound is taken."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from dualscore.energy import normalized_by_form
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood import Estimate, bits, bits_per_dim, dequantized_bits_per_dim, log_normalizer, mean
from dualscore.likelihood.units import STEP
from dualscore.measuring.mass import LEVELS
from dualscore.measuring.subject import Rows, Subject
from dualscore.sampling.annealed import levels

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
        """A stratum's width, in nats of ln t."""
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


@dataclass(frozen=True)
class Extent:
    """The number of images for each purpose, and the other limits of an evaluation."""

    reported: str  # the split whose images are reported
    chooser: str  # the split whose images choose, such as t0 and t1 of the bound
    images: int  # of the reported split
    subset: int  # of those, for all that costs tens of evaluations
    train_images: int  # of the training split, for the figure beside
    ode_images: int  # of the reported split
    draws: int  # dequantizations an image
    ode_tolerance: float  # of the solver, in standard deviations
    chains: int  # for the mass
    mirror: bool  # whether the bound's denoiser is averaged with its mirror image


def _unknown(_: Tensor) -> None:
    """The photographs of images of which nobody knows them."""


@dataclass(frozen=True)
class Measured:
    """Rows of a model by the names of their stages; figures are functions of it.

    `photographs` maps positions (n,) of reported images to the photograph each is of, (n,), or None if not
    known; `of_training` does so for training images.
    """

    subject: Subject
    dimension: int
    grid: Grid
    levels: list[float]  # noise variances that are reported, rising, in pixel²
    photographs: Callable[[Tensor], Tensor | None] = _unknown
    of_training: Callable[[Tensor], Tensor | None] = _unknown
    span: tuple[int, int] = (0, 0)  # edges of the grid between which the bound is taken
    rows: dict[str, Rows] = field(default_factory=dict)

    @property
    def known(self) -> list[float]:
        """The reported noise levels at which the model was trained, rising."""
        return [t for t in self.levels if self.subject.inside(t)]

    @property
    def anchors(self) -> list[float]:
        """Noise variances between which the energy's rise is looked at: t_min, `known` or t_max."""
        t_min, t_max = self.subject.t_range
        above = [t for t in self.known if t > 1.01 * t_min]
        return [t_min, *(above or [t_max])]

    def with_span(self) -> "Measured":
        """The measurement with t0 and t1 chosen on the pilot's rows."""
        span = choose(self.grid, self.rows["pilot"], self.rows["pilot_ends"], self.dimension)
        return replace(self, span=span)

    @property
    def bound_range(self) -> tuple[float, float]:
        """The bound's t0 and t1, in pixel²."""
        return self.grid.edge(self.span[0]), self.grid.edge(self.span[1])

    @property
    def falling(self) -> list[float]:
        """The chains' noise variances, falling to that of training or of rounding to 8 bits, in pixel²."""
        t_min, t_max = self.subject.t_range
        return levels(t_max, LEVELS, max(t_min, QUANTIZATION_VARIANCE))

    @cached_property
    def log_z(self) -> Estimate:
        """Log Z by the paper's protocol on the reported images, in nats."""
        return self.normalizer("normalizer")

    @cached_property
    def shared(self) -> Estimate:
        """Log Z in bits/dim: what estimates of an energy share."""
        return bits(self.log_z, self.dimension)

    def normalizer(self, stage: str) -> Estimate:
        """Log Z in nats from the rows of noisy energies at t_max, and the noisy images' entropy there.

        Of an energy that is normalized by its form it is 0, whatever the rows.
        """
        if normalized_by_form(self.subject.model):
            return Estimate(0.0, 0.0)
        rows, t_max = self.rows[stage], self.subject.t_range[1]
        entropy = float(self.subject.prior.entropy(t_max))
        return log_normalizer(rows["energy"][:, -1], rows["noise_square"], self.dimension, entropy)

    def mean(self, values: Tensor, position: Tensor) -> Estimate:
        """Mean over reported images (n,) with its error over their photographs."""
        return mean(values, self.photographs(position))

    @property
    def zero_nats(self) -> float:
        """Bits/dim where −log P of 8-bit images, or −log p of those that have a density, is 0."""
        return 0.0 if self.subject.quantized else float(bits_per_dim(torch.zeros(()), self.dimension))

    def density_bits(self, energy: Tensor) -> Tensor:
        """Bits/dim of normalized energies (n,) of images with a density: dequantized where they are 8-bit."""
        convert = dequantized_bits_per_dim if self.subject.quantized else bits_per_dim
        return convert(energy, self.dimension)
