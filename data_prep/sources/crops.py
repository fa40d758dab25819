"""Square crops of photographs on regular grids, at scales 1, ½ and ¼."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.plan import Images, Unit
from data_prep.pool import stop_if_told
from data_prep.sources.photographs import Photograph, read_again

REDUCTIONS = (1, 2, 4)


def count_crops(size: tuple[int, int], side: int, stride: int) -> int:
    """Number of crops of a photograph of that (width, height), over all scales."""
    total = 0
    for reduction in REDUCTIONS:
        across, down = ((length // reduction - side) // stride + 1 for length in size)
        total += max(0, across) * max(0, down)
    return total


def cut(image: Image.Image, side: int, stride: int, channels: int) -> list[NDArray[np.uint8]]:
    """Views of every crop at each scale: a list of arrays (rows, columns, C, side, side), uint8."""
    grids = []
    for reduction in REDUCTIONS:
        width, height = (length // reduction * reduction for length in image.size)
        # cropped first, so that each pixel is the mean of a whole block
        small = np.asarray(image.crop((0, 0, width, height)).reduce(reduction))[..., :channels]
        if min(small.shape[:2]) >= side:
            windows = np.lib.stride_tricks.sliding_window_view(small, (side, side), axis=(0, 1))
            grids.append(windows[::stride, ::stride])
    return grids


@dataclass(frozen=True)
class CropUnit(Unit):
    """Crops of a group of photographs, shuffled together if a seed is given, else in their order.

    ``first`` is the number of the first of these photographs among those of the split.
    """

    photographs: tuple[Photograph, ...]
    side: int
    stride: int
    channels: int
    shuffle_seed: tuple[int, ...] | None
    first: int

    def numbers(self) -> NDArray[np.int32]:
        """Number, in the split, of the photograph that each crop is of: int32, shape (images,)."""
        counts = [count_crops(photo.size, self.side, self.stride) for photo in self.photographs]
        last = self.first + len(counts)
        return np.repeat(np.arange(self.first, last, dtype=np.int32), counts)[self.order()]

    def order(self) -> NDArray[np.int64]:
        """Place, photograph by photograph, of each crop: shape (images,)."""
        order = np.arange(self.images)
        if self.shuffle_seed is not None:
            np.random.default_rng(self.shuffle_seed).shuffle(order)
        return order

    @contextmanager
    def open(self) -> Iterator[Images]:
        """Decode the photographs; the crops are only copied as they are taken."""
        grids = []
        for photograph in self.photographs:
            stop_if_told()
            grids += cut(read_again(photograph), self.side, self.stride, self.channels)
        yield _Crops(grids, self)


class _Crops:
    def __init__(self, grids: list[NDArray[np.uint8]], unit: CropUnit) -> None:
        self.grids = grids
        self.starts = np.cumsum([0] + [grid.shape[0] * grid.shape[1] for grid in grids])
        self.order = unit.order()

    def take(self, start: int, stop: int) -> NDArray[np.uint8]:
        crops = []
        for position in self.order[start:stop]:
            which = int(np.searchsorted(self.starts, position, side="right")) - 1
            grid = self.grids[which]
            crops.append(grid[divmod(int(position - self.starts[which]), grid.shape[1])])
        return np.stack(crops)
