"""A stack of bits: what is pushed with a distribution is popped with the same one, last in, first out.

Asymmetric numeral systems, by constriction (Bamler 2022, arXiv 2201.01741). Popping from bits that hold
something else *draws* from the distribution, and pushing puts those bits back: that is bits back's loan.
"""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualscore.errors import CodingError

FINE = 256.0
"""Centres are rounded to this part of a bin, widths to this part of an octave: both sides must agree."""
NOISE, EXPECTED = 8.0, 32.0
"""Standard deviations at which a range ends: of noise that is drawn, and of what a denoiser expects of it.

Tables of 24 bits give every number of a range a part in 2^24, so that a wide one would draw far outliers, and
each costs hundreds of bits; what a denoiser says may be wrong by much.
"""


_MOST_BINS = 2.0**22
"""Numbers on either side that such tables can hold."""


def _coder() -> Any:  # noqa: ANN401 - the module is untyped
    try:
        import constriction
    except ImportError:
        raise CodingError('files of images need constriction: pip install "dualscore[coding]"') from None
    return constriction.stream


def require_constriction() -> None:
    """A CodingError that says what to install where it is missing."""
    _coder()


def lent(count: int, key: str = "") -> NDArray[np.uint32]:
    """So many words of bits that a stack may begin with, the same for the same key; the last one is not 0."""
    digest = hashlib.shake_256(f"dualscore{key}".encode()).digest(4 * count)
    words = np.frombuffer(digest, "<u4").astype(np.uint32)
    words[-1:] |= np.uint32(1)  # leading zeros would be lost
    return words


class OutOfRangeError(CodingError):
    """Symbols that the coder's range does not reach; `images` are their places in the batch."""

    def __init__(self, images: list[int]) -> None:
        super().__init__(f"the coder's range does not reach what images {images} of the batch need")
        self.images = images


class Stack:
    """Bits, and integers that are pushed on them and popped from them.

    Args:
        words: what it starts with, uint32; zeros where it is empty and something is popped.
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._stream = _coder()
        self._coder = self._stream.stack.AnsCoder(words.copy())
        self._tables = self._stream.model.Categorical(perfect=False)

    @property
    def bits(self) -> int:
        """How many it holds."""
        return int(self._coder.num_valid_bits())

    def words(self) -> NDArray[np.uint32]:
        """All that it holds."""
        return np.asarray(self._coder.get_compressed())

    def holds(self, words: NDArray[np.uint32]) -> bool:
        """Whether it holds these, and nothing else."""
        return np.array_equal(self.words(), words)

    def copy(self) -> "Stack":
        """Another one that holds the same."""
        return Stack(self.words())

    def push_normal(self, numbers: Tensor, mean: Tensor, deviation: Tensor, reach: float = NOISE) -> None:
        """Push integers of rounded normal numbers, of means and deviations in bins, all of shape (B, …).

        An OutOfRangeError, before anything is pushed, where a number is over `reach` deviations away.
        """
        centre, rest, width = _shared(mean, deviation)
        furthest = _bins(width, reach)
        symbols = numbers - centre
        refuse_far(symbols.abs() > furthest)
        self._coder.encode_reverse(
            symbols.flatten().numpy().astype(np.int32), self._normal(furthest), _array(rest), _array(width)
        )

    def pop_normal(self, mean: Tensor, deviation: Tensor, reach: float = NOISE) -> Tensor:
        """Pop integers, int64, pushed with these means and deviations, or draw them: shape (B, …)."""
        centre, rest, width = _shared(mean, deviation)
        found = self._coder.decode(self._normal(_bins(width, reach)), _array(rest), _array(width))
        return centre + torch.from_numpy(found.astype(np.int64)).view(centre.shape)

    def push_table(self, numbers: Tensor, probabilities: Tensor) -> None:
        """Push integers (n,) from 0 on, of probabilities (n, k), none above 0 where they are impossible."""
        self._coder.encode_reverse(numbers.numpy().astype(np.int32), self._tables, probabilities.numpy())

    def pop_table(self, probabilities: Tensor) -> Tensor:
        """Pop integers, int64, (n,), that were pushed with these probabilities (n, k)."""
        found = self._coder.decode(self._tables, probabilities.numpy())
        return torch.from_numpy(found.astype(np.int64))

    def _normal(self, furthest: int) -> Any:  # noqa: ANN401
        return self._stream.model.QuantizedGaussian(-furthest, furthest)


def log_normal(numbers: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log probabilities in nats, before tables of 24 bits, of what `push_normal` takes; of its shape."""
    centre, rest, width = _shared(mean, deviation)
    # By symmetry in the lower tail, where nothing cancels.
    nearest = (numbers - centre - rest).abs()
    upper = torch.special.log_ndtr((0.5 - nearest) / width)
    lower = torch.special.log_ndtr((-0.5 - nearest) / width)
    found: Tensor = upper + torch.log1p(-torch.exp(lower - upper))
    return found


def refuse_far(far: Tensor) -> None:
    """Raise an OutOfRangeError of the images of which any symbol is too far, shape (B, …)."""
    if bool(far.any()):
        raise OutOfRangeError(far.flatten(1).any(dim=1).nonzero().flatten().tolist())


def fine(values: Tensor) -> Tensor:
    """Values rounded to multiples of 1/`FINE`, of any shape: small differences of two machines vanish."""
    return (values * FINE).round() / FINE


def _shared(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What both sides compute alike: the bin of a mean, its place in it, and the width."""
    centre = mean.round()
    rest = fine(mean - centre)
    width = torch.exp2(fine(torch.log2(deviation))).expand(mean.shape)
    return centre.long(), rest, width


def _bins(width: Tensor, reach: float) -> int:
    furthest = reach * max(1.0, float(width.max()))
    if not furthest < _MOST_BINS:
        raise CodingError("its noise levels are too far apart for the coder's tables")
    return math.ceil(furthest)


def _array(values: Tensor) -> NDArray[np.float64]:
    return np.ascontiguousarray(values.numpy().reshape(-1))
