"""Everything that was measured of a model: rows, and what it takes to read them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from dualscore.likelihood import Estimate, bits, bits_per_dim, dequantized_bits_per_dim, log_normalizer, mean
from dualscore.measuring.bound_range import Grid
from dualscore.measuring.rows import Rows
from dualscore.measuring.subject import Subject


@dataclass(frozen=True)
class Extent:
    """How much of what is measured.

    Args:
        reported: the split whose images are reported.
        chooser: the split whose images choose, such as t0 and t1 of the bound.
        images: of the reported split.
        subset: of those, for all that costs tens of evaluations.
        train_images: of the training split, for the figure beside.
        ode_images: of the reported split.
        draws: dequantizations an image.
        ode_tolerance: of the ODE solver, in standard deviations.
        mirror: whether the bound's denoiser is averaged with its mirror image.
    """

    reported: str
    chooser: str
    images: int
    subset: int
    train_images: int
    ode_images: int
    draws: int
    ode_tolerance: float
    mirror: bool = False


def _unknown(_: Tensor) -> None:
    """The photographs of images of which nobody knows them."""


@dataclass(frozen=True)
class Measured:
    """Rows of a model by the names of their stages; figures are functions of it.

    Args:
        subject: the model.
        dimension: d.
        grid: strata of ln t.
        levels: noise variances that are reported, rising, in pixel².
        photographs: positions (n,) of reported images → which photograph each is of, (n,); None if not known.
        of_training: the same of training images.
        span: edges of the grid between which the bound is taken.
        rows: by stage.
    """

    subject: Subject
    dimension: int
    grid: Grid
    levels: list[float]
    photographs: Callable[[Tensor], Tensor | None] = _unknown
    of_training: Callable[[Tensor], Tensor | None] = _unknown
    span: tuple[int, int] = (0, 0)
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

    @cached_property
    def log_z(self) -> Estimate:
        """Log Z by the paper's protocol on the reported images, in nats."""
        return self.normalizer("normalizer")

    @cached_property
    def shared(self) -> Estimate:
        """Log Z in bits/dim: what estimates of an energy share."""
        return bits(self.log_z, self.dimension)

    def normalizer(self, stage: str) -> Estimate:
        """Log Z in nats from the rows of noisy energies at t_max, and the noisy images' entropy there."""
        rows, t_max = self.rows[stage], self.subject.t_range[1]
        entropy = float(self.subject.prior.entropy(t_max))
        return log_normalizer(rows["energy"][:, -1], rows["noise_square"], self.dimension, entropy)

    def mean(self, values: Tensor, position: Tensor) -> Estimate:
        """Mean over reported images (n,) with its error over their photographs."""
        return mean(values, self.photographs(position))

    def density_bits(self, energy: Tensor) -> Tensor:
        """Bits/dim of normalized energies (n,) of images with a density: dequantized where they are 8-bit."""
        convert = dequantized_bits_per_dim if self.subject.quantized else bits_per_dim
        return convert(energy, self.dimension)
