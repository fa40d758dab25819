"""What an estimate of the likelihood is, in an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from dualscore.evaluation import figures
from dualscore.likelihood import Estimate, mean

if TYPE_CHECKING:
    from dualscore.evaluation.measurement import Measurement


@dataclass(frozen=True)
class Estimator:
    """An estimate of the likelihood, as experiments name it in `evaluate.estimators`."""

    label: str
    """In tables."""
    kind: str
    """What sort of figure it is, in table 2."""
    measure: Callable[["Measurement"], "Estimated"]
    """Gives each image's bits/dim."""
    energy: bool = False
    """Whether it needs an energy; log Z, and its error, are then added to what is measured."""
    discrete: bool = False
    """Whether it is of 8-bit images only."""


@dataclass(frozen=True)
class Estimated:
    """One estimate of the images' likelihood."""

    position: Tensor
    """Which images, as rows have them, shape (n,)."""
    bits: Tensor
    """Bits/dim of each, shape (n,); of an estimate of an energy, without log Z."""
    evaluations: int
    """Of the network, over all images; without those of log Z."""
    also: figures.Figure = field(default_factory=dict)
    """What the report says beside."""

    def figure(self, shared: Estimate | None, normalizing: int) -> figures.Figure:
        """The report's entry.

        Args:
            shared: log Z in bits/dim, with its error; None where the bits hold it already.
            normalizing: network evaluations that log Z took.

        Returns:
            Mean and standard error over images (that of log Z included), and what they cost.
        """
        found = mean(self.bits)
        return {
            **figures.plain(found if shared is None else found + shared),
            "images": len(self.bits),
            "evaluations": self.evaluations + normalizing,
            **self.also,
        }
