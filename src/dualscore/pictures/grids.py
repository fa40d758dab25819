"""Images and heat maps as RGB, and grids of images in one picture."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE, GAP, LINE = 64, 2, 14
"""Pixels of an image's side at least, between images, and of a line of text."""
COLOURS = (mpl.colormaps["inferno"](np.arange(256))[:, :3] * 255.0).round().astype(np.uint8)
"""RGB from black through red to pale yellow, shape (256, 3)."""


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Pixels in [0, 1], clamped and rounded to 8 bits, as RGB: (…, C, H, W) → (…, H, W, 3)."""
    stored = (255.0 * images.detach().cpu().float().clamp(0.0, 1.0)).round().to(torch.uint8)
    return stored.movedim(-3, -1).expand(*stored.shape[:-3], *stored.shape[-2:], 3).numpy()


def tile(
    images: Tensor, titles: Sequence[str] = (), *, caption: str = "", side: int = SIDE
) -> NDArray[np.uint8]:
    """Lay out images (rows, columns, C, H, W) as RGB (height, width, 3); NaN leaves a place empty.

    Images smaller than `side` are enlarged by a whole factor; `titles` stand above the columns.
    """
    rows, columns, _, height, width = images.shape
    factor = max(1, side // max(height, width))
    down, across = height * factor + GAP, width * factor + GAP
    lines = caption.splitlines()
    below = LINE * len(lines)
    top = GAP + below + (LINE if titles else 0)
    room = max((math.ceil(ImageFont.load_default().getlength(line)) for line in lines), default=0) + 2 * GAP
    picture = Image.new("RGB", (max(columns * across + GAP, room), rows * down + top), "white")
    pixels = to_bytes(images.nan_to_num(1.0))
    for row in range(rows):
        for column in range(columns):
            cell = Image.fromarray(pixels[row, column])
            cell = cell.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(cell, (GAP + column * across, top + row * down))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((GAP, 1 + number * LINE), line, fill="black")
    for column, title in enumerate(titles):
        pen.text((GAP + column * across, 1 + below), title, fill="black")
    return np.asarray(picture)


def arrange(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in a grid about as wide as high, (rows, columns, C, H, W), its end left empty."""
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    empty = images.new_full((rows * columns - len(images), *images.shape[1:]), float("nan"))
    return torch.cat([images, empty]).view(rows, columns, *images.shape[1:])


def colour(heat: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.uint8]:
    """Colour a map (…, H, W) as RGB (…, H, W, 3), dark to bright over `scale`; NaN is the brightest."""
    level = np.clip((heat - scale[0]) / (scale[1] - scale[0]), 0.0, 1.0)
    return COLOURS[np.round(255.0 * np.nan_to_num(level, nan=1.0)).astype(np.uint8)]


def common_scale(maps: NDArray[np.float64]) -> tuple[float, float]:
    """A scale for several maps; a few extreme pixels do not stretch it, so no image darkens the others."""
    finite = maps[np.isfinite(maps)]
    low, high = (float(v) for v in np.quantile(finite, (0.01, 0.95))) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
