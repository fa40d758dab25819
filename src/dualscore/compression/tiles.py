"""How pictures are cut into tiles, and which tiles are coded together: alike where they are read."""

import itertools
import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 64
"""Pixels of a tile's side at most, of models of any size."""
BATCH = 16
"""Tiles that are coded at once, where the stack holds as many bits as they borrow."""


class Tile(NamedTuple):
    """A part of a picture."""

    image: int  # number of the picture
    place: int  # of the tile in it
    model: int
    top: int
    left: int
    height: int  # as it is coded; beyond the picture's edge its last pixels are repeated
    width: int


def tiles_of(
    image: int, model: int, size: tuple[int, int], fixed: tuple[int, int] | None = None
) -> list[Tile]:
    """Tiles of a picture of (height, width) pixels: as equal as they can be, or of one `fixed` size."""
    spans = []
    for length, own in zip(size, fixed or (None, None), strict=True):
        count = math.ceil(length / (own or SIDE))
        edges = [i * own if own else i * length // count for i in range(count + 1)]
        spans.append(list(itertools.pairwise(edges)))
    found = [(bottom - top, right - left, top, left) for top, bottom in spans[0] for left, right in spans[1]]
    # Those of one size follow one another, so that they are coded together.
    return [
        Tile(image, place, model, top, left, height, width)
        for place, (height, width, top, left) in enumerate(sorted(found))
    ]


def tile_count(size: tuple[int, int], fixed: tuple[int, int] | None) -> int:
    """How many `tiles_of` makes of a picture of (height, width) pixels."""
    height, width = fixed or (SIDE, SIDE)
    return math.ceil(size[0] / height) * math.ceil(size[1] / width)


def alike(tiles: Iterable[Tile]) -> Iterator[list[Tile]]:
    """Tiles one after another of one size and model, which may be coded together."""
    for _, run in groupby(tiles, lambda tile: (tile.model, tile.height, tile.width)):
        yield list(run)


def cut(picture: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
    """A tile of a picture (C, H, W), (C, height, width)."""
    rows = np.minimum(np.arange(tile.top, tile.top + tile.height), picture.shape[1] - 1)
    columns = np.minimum(np.arange(tile.left, tile.left + tile.width), picture.shape[2] - 1)
    return np.ascontiguousarray(picture[:, rows[:, None], columns])


def lay(picture: NDArray[np.uint8], tile: Tile, pixels: NDArray[np.uint8]) -> None:
    """Put a tile's pixels (C, height, width) into its picture (C, H, W)."""
    bottom = min(picture.shape[1], tile.top + tile.height)
    right = min(picture.shape[2], tile.left + tile.width)
    picture[:, tile.top : bottom, tile.left : right] = pixels[:, : bottom - tile.top, : right - tile.left]
