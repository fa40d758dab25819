"""Finds scaled, re-encoded, brightened, mirrored and turned copies among photographs, by their long waves."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from data_prep.sources.photographs import Photograph

WAVES = 8
"""Cosines along each side, the constant one among them."""
MOST_SEEN = 128
"""Larger photographs are first brought to this many pixels a side."""
STEEPNESS = 0.25
"""Coefficients are multiplied by their frequency to this power, since long waves are stronger."""
LEAST_ALIKE = 0.90
"""Correlation of two copies' waves, but for this error of each, in levels of 255, as JPEG makes:"""
LEVELS_OFF = 0.3
FLAT = 0.5
"""Photographs whose waves have no more levels together are nobody's copy."""
MOST_CONTRAST, MOST_BRIGHTER = 1.25, 1.15
"""Factors between copies' contrasts and means; besides them means may differ by `MEAN_OFF` levels."""
MEAN_OFF = 4.0
COLOUR_OFF = 13.0
"""Levels between copies' means of red, and of blue, above brightness: JPEG at 5 moves them by 12."""
MOST_STRETCHED, PIXELS_OFF = 0.03, 0.6
"""By how much the ratio of copies' sides may differ, and the rounding of the smaller side's length."""
BLOCK = 2**8

Floats = NDArray[np.float32]
_ODD = np.where(np.arange(WAVES) % 2, -1, 1).astype(np.float32)
_TURNS = [
    (on_its_side, rows[:, None] * columns)
    for on_its_side, rows, columns in product((False, True), (_ODD**2, _ODD), (_ODD**2, _ODD))
]
"""A mirrored picture's odd waves change their sign; one on its side has its sides exchanged."""


def waves(image: Image.Image) -> bytes:
    """The 8×8 longest cosines of an image's brightness and its mean colour, in levels, float32.

    They are sampled at the pixels' own middles, so that they are the same on any grid of pixels.
    """
    width, height = (min(side, MOST_SEEN) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX, reducing_gap=3.0)
    bright = np.asarray(small.convert("L"), np.float64)
    red, _, blue = np.asarray(small, np.float64).mean(axis=(0, 1)) - bright.mean()
    found = _cosines(height) @ bright @ _cosines(width).T
    order = np.arange(WAVES)
    weights = np.hypot(order[:, None], order) ** STEEPNESS
    weights[0, 0] = 1.0
    return np.append(weights * found, (red, blue)).astype(np.float32).tobytes()


def _cosines(count: int) -> NDArray[np.float64]:
    """Orthonormal cosines, divided by √count, of shape (WAVES, count)."""
    order = np.arange(WAVES)[:, None]
    return np.where(order, 2**0.5, 1.0) / count * np.cos(np.pi * order * (np.arange(count) + 0.5) / count)


def near_copies(photographs: "Sequence[Photograph]") -> "list[tuple[Photograph, Photograph]]":
    """Photographs that are copies of one of more worth (of equal ones the first), each with it."""
    ranked = sorted(range(len(photographs)), key=lambda k: photographs[k].worth, reverse=True)
    raw = b"".join(photographs[k].waves for k in ranked)
    signs = np.frombuffer(raw, np.float32).reshape(-1, WAVES**2 + 2)
    found, colour = signs[:, :-2].reshape(-1, WAVES, WAVES), signs[:, -2:]
    mean, rest = found[:, 0, 0].copy(), found.copy()
    rest[:, 0, 0] = 0.0
    contrast = np.sqrt(np.square(rest).sum(axis=(1, 2)))
    alike = rest / np.maximum(contrast, FLAT)[:, None, None]
    size = np.array([photographs[k].size for k in ranked], np.float32).reshape(-1, 2)
    rounding = MOST_STRETCHED + PIXELS_OFF / size.min(axis=1, initial=np.inf)
    shape = np.log(size[:, 0] / size[:, 1])
    pairs = list[tuple[int, int]]()
    for start in range(0, len(ranked), BLOCK):
        block = slice(start, start + BLOCK)
        contrasts = np.maximum(contrast[block, None] * contrast[start:], FLAT**2)
        least = LEAST_ALIKE - LEVELS_OFF**2 / 2 / contrasts
        for on_its_side, mirrored in _TURNS:
            rows = mirrored * (alike[block].swapaxes(1, 2) if on_its_side else alike[block])
            alikeness = rows.reshape(-1, WAVES**2) @ alike[start:].reshape(-1, WAVES**2).T
            one, two = (found + start for found in np.nonzero(alikeness >= least))
            same = (one < two) & (np.minimum(contrast[one], contrast[two]) > FLAT)
            stretched = np.abs(shape[one] * (-1 if on_its_side else 1) - shape[two])
            same &= stretched <= np.maximum(rounding[one], rounding[two])
            same &= _within(contrast[one], contrast[two], MOST_CONTRAST, 2 * LEVELS_OFF)
            same &= _within(mean[one], mean[two], MOST_BRIGHTER, MEAN_OFF)
            same &= (np.abs(colour[one] - colour[two]) <= COLOUR_OFF).all(axis=1)
            pairs += zip(one[same].tolist(), two[same].tolist(), strict=True)
    copy_of: dict[int, int] = {}
    for better, copy in sorted(pairs):
        if better not in copy_of:
            copy_of.setdefault(copy, better)
    named = sorted((ranked[copy], ranked[better]) for copy, better in copy_of.items())
    return [(photographs[copy], photographs[better]) for copy, better in named]


def _within(one: Floats, two: Floats, factor: float, levels: float) -> NDArray[np.bool_]:
    return np.maximum(one, two) <= factor * np.minimum(one, two) + levels
