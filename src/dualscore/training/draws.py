"""The random numbers of a training batch."""

from typing import NamedTuple

from torch import Tensor


class Draws(NamedTuple):
    """The random numbers of a training batch."""

    noise: Tensor
    """z, shape (B, C, H, W)."""
    noise_variance: Tensor
    """t in pixel², shape (B,)."""
    flip: Tensor
    """Which images are mirrored, bool, shape (B,)."""
    dequantize: Tensor | None
    """u in [0, 1) for each pixel, shape (B, C, H, W); None where training images stay on their levels."""
    elsewhere: Tensor | None = None
    """t′ in pixel², shape (B,), that t is told from; None where it is not."""

    def part(self, first: int, last: int) -> "Draws":
        """Those of images `first` to `last` (excluded)."""
        return Draws(*(None if column is None else column[first:last] for column in self))  # type: ignore[arg-type]
