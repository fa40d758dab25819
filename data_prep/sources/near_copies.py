"""Finds scaled and re-encoded copies among photographs, by thumbnails of 9×8 pixels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from data_prep.sources.photographs import Photograph

COLUMNS, ROWS = 9, 8
MOST_LEVELS = 6.0
"""Root mean square difference of copies' thumbnails, of 255."""
MOST_OF_CONTRAST = 0.15
"""The same as a part of the thumbnail's own contrast, but for images with little:"""
LITTLE_LEVELS, LITTLE_OF_CONTRAST = 2.0, 0.5
MOST_STRETCHED = 0.03
"""By how much the ratio of copies' sides may differ, as lengths are rounded."""


def thumbnail(image: Image.Image) -> bytes:
    """The means of 9×8 areas of an RGB image."""
    return image.resize((COLUMNS, ROWS), Image.Resampling.BOX).tobytes()


def near_copies(photographs: "Sequence[Photograph]") -> "list[tuple[Photograph, Photograph]]":
    """Photographs that are copies of a larger one (of the first by order, if equally large), each with it."""
    if not photographs:
        return []
    raw = b"".join(photo.thumbnail for photo in photographs)
    small = np.frombuffer(raw, np.uint8).reshape(len(photographs), ROWS, COLUMNS, 3)
    sizes = np.array([photo.size for photo in photographs], dtype=float)
    # means of 2×3 parts differ by no more than what they are means of
    parts = (
        small.reshape(len(small), 2, ROWS // 2, 3, COLUMNS // 3, 3).mean(axis=(2, 4)).reshape(len(small), -1)
    )
    tree = cKDTree(parts)
    copy_of: dict[int, int] = {}
    for this in map(int, np.argsort(-sizes.prod(axis=1), kind="stable")):
        if this in copy_of:
            continue
        for other in tree.query_ball_point(parts[this], MOST_LEVELS * parts.shape[1] ** 0.5):
            smaller = (-sizes[this].prod(), this) < (-sizes[other].prod(), other)
            if smaller and _same(small[this], small[other]) and _same_shape(sizes[this], sizes[other]):
                copy_of.setdefault(other, this)
    return [(photographs[copy], photographs[copy_of[copy]]) for copy in sorted(copy_of)]


def _same(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> bool:
    first, second = one.astype(float), two.astype(float)
    apart = np.sqrt(np.square(first - second).mean())
    contrast = first.std(axis=(0, 1)).mean()
    most = max(MOST_OF_CONTRAST * contrast, min(LITTLE_LEVELS, LITTLE_OF_CONTRAST * contrast))
    return bool(apart <= min(MOST_LEVELS, most))


def _same_shape(one: NDArray[np.float64], two: NDArray[np.float64]) -> bool:
    return bool(abs(np.log(one[0] * two[1] / (one[1] * two[0]))) <= MOST_STRETCHED)
