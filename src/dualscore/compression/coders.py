"""A model that codes tiles of any size it takes, and what tells whether it computes here as it did there."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dualscore.coding import BitsBack, NoiseLevels
from dualscore.constant import constant
from dualscore.model import ImageModel
from dualscore.networks.orders import mean_of_orientations
from dualscore.networks.restrained import restrained

_ANY_SIDE = (16, 16)
_TESTED = 4
"""Levels, evenly spaced, at which a self-test asks a model."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Coders:
    """The codes of a model, one for each size of tiles, on the CPU.

    Args:
        model: with the Gaussian of its training images.
        levels: the noise levels.
        double: whether the network is in double precision too.
        orientations: whether its denoiser is the mean of those of four orientations.
    """

    def __init__(self, model: ImageModel, levels: NoiseLevels, double: bool, orientations: bool) -> None:
        self.model = copy.deepcopy(model).double() if double else model
        self.levels = levels
        network = constant(self.model.score_model)
        self.denoiser = mean_of_orientations(network) if orientations else restrained(network)
        self._made: dict[tuple[int, int], BitsBack] = {}

    def of(self, height: int, width: int) -> BitsBack:
        """The code of tiles of a size."""
        if (height, width) not in self._made:
            assert self.model.prior is not None
            self._made[height, width] = BitsBack(
                self.denoiser,
                self.model.prior.at(height, width),
                self.levels,
                self.model.like,
            )
        return self._made[height, width]

    def self_test(self, side: tuple[int, int] | None) -> str:
        """A digest of what the model, of any size or of one, makes of numbers that every machine has."""
        coder, found = self.of(*(side or _ANY_SIDE)), hashlib.sha256()
        digits = bytearray(hashlib.shake_256(b"dualscore").digest(coder.dimension))
        latents = torch.frombuffer(digits, dtype=torch.uint8).view(1, *coder.shape).long() % 9 - 4
        for place in range(_TESTED):
            i = max(1, round(place * self.levels.steps / (_TESTED - 1)))
            for part in coder.expected(latents, i):
                found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()[:32]
