"""Heat maps in colour."""

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

COLOURS = (mpl.colormaps["inferno"](np.arange(256))[:, :3] * 255.0).round().astype(np.uint8)
"""RGB from black through red to pale yellow, shape (256, 3)."""


def colour(heat: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.uint8]:
    """Colour a map, from black through red to pale yellow.

    Args:
        heat: any unit, shape (…, H, W); NaN gets the brightest colour.
        scale: the values of the darkest and the brightest colour.

    Returns:
        RGB, shape (…, H, W, 3).
    """
    level = np.clip((heat - scale[0]) / (scale[1] - scale[0]), 0.0, 1.0)
    return COLOURS[np.round(255.0 * np.nan_to_num(level, nan=1.0)).astype(np.uint8)]


def common_scale(maps: NDArray[np.float64]) -> tuple[float, float]:
    """A scale that most of some maps' pixels lie within: one strange image must not darken the others."""
    finite = maps[np.isfinite(maps)]
    low, high = (float(v) for v in np.quantile(finite, (0.01, 0.95))) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
