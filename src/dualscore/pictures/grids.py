"""Images side by side in one picture."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

SIDE, GAP, LINE = 64, 2, 14
"""Pixels of an image's side at least, between images, and of a line of text."""
_BACKGROUND = 255


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Pixels in [0, 1], clamped and rounded to 8 bits, as RGB: (…, C, H, W) → (…, H, W, 3)."""
    stored = (255.0 * images.detach().cpu().float().clamp(0.0, 1.0)).round().to(torch.uint8)
    return stored.movedim(-3, -1).expand(*stored.shape[:-3], *stored.shape[-2:], 3).numpy()


def tile(
    images: Tensor, titles: Sequence[str] = (), *, caption: str = "", side: int = SIDE
) -> NDArray[np.uint8]:
    """Lay images out in rows and columns; small ones are enlarged by a whole factor.

    Args:
        images: pixels in [0, 1], shape (rows, columns, C, H, W); NaN leaves a place empty.
        titles: of the columns.
        caption: one line above them.
        side: pixels of an image's side at least.

    Returns:
        RGB, shape (height, width, 3).
    """
    rows, columns, _, height, width = images.shape
    factor = max(1, side // max(height, width))
    down, across = height * factor + GAP, width * factor + GAP
    below = LINE if caption else 0
    top = GAP + below + (LINE if titles else 0)
    picture = Image.new("RGB", (columns * across + GAP, rows * down + top), (_BACKGROUND,) * 3)
    pixels = to_bytes(images.nan_to_num(1.0))
    for row in range(rows):
        for column in range(columns):
            cell = Image.fromarray(pixels[row, column])
            cell = cell.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(cell, (GAP + column * across, top + row * down))
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, 1), caption, fill="black")
    for column, title in enumerate(titles):
        pen.text((GAP + column * across, 1 + below), title, fill="black")
    return np.asarray(picture)


def arrange(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in a grid about as wide as high, (rows, columns, C, H, W), its end left empty."""
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    empty = images.new_full((rows * columns - len(images), *images.shape[1:]), float("nan"))
    return torch.cat([images, empty]).view(rows, columns, *images.shape[1:])
