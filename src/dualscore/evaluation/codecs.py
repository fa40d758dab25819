"""Lossless codecs on a mosaic of images: what a file of them takes, at high effort.

A codec needs a header a file and learns from what it has seen, so that small images alone would be unfair to
it; side by side in one picture they have the seams against them instead.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from dualscore.errors import DataError

Picture = NDArray[np.uint8]
LARGEST_SIDE = 16_383  # pixels of a WebP's side, the shortest limit of all
GRAY_EFFORT, COLOUR_EFFORT = 9, 8
"""JPEG XL's effort: 10 saves 0.001 bits/dim more in three times the time; 9 takes minutes a megapixel."""


def mosaic(images: Picture) -> Picture:
    """Lay 8-bit images (n, C, H, W) side by side, in rows, nearly square; black where the last row has none.

    A DataError refuses what is neither gray nor RGB, or larger than a WebP can be.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise DataError(f"codecs are for gray and RGB images, and these have {channels} channels")
    columns = math.ceil(math.sqrt(count * height / width))
    rows = -(-count // columns)
    if max(rows * height, columns * width) > LARGEST_SIDE:
        size = f"{rows * height:,}×{columns * width:,}"
        raise DataError(f"a mosaic of {size} pixels is too large: a WebP's side has at most {LARGEST_SIDE:,}")
    tiles = np.zeros((rows * columns, channels, height, width), np.uint8)
    tiles[:count] = images
    whole = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = whole.reshape(rows * height, columns * width, channels)
    return np.ascontiguousarray(picture[..., 0] if channels == 1 else picture)


def png(picture: Picture) -> bytes:
    """A PNG file of a gray or RGB picture (Pillow: filters chosen a row, deflate's highest level)."""
    return _saved(Image.fromarray(picture), "PNG", optimize=True)


def webp(picture: Picture) -> bytes:
    """A lossless WebP file, which has no gray: three equal channels cost it next to nothing."""
    if not features.check("webp"):
        raise DataError("this Pillow was built without WebP: pip install --force-reinstall pillow")
    image = Image.fromarray(picture).convert("RGB")
    return _saved(image, "WEBP", lossless=True, quality=100, method=6, exact=True)


def jpeg_xl(picture: Picture) -> bytes:
    """A lossless JPEG XL file, by libjxl."""
    try:
        import imagecodecs
    except ImportError:
        raise DataError('not installed: pip install "dualscore[codecs]"') from None
    if not imagecodecs.JPEGXL.available:
        raise DataError("this imagecodecs was built without libjxl: pip install imagecodecs")
    effort = GRAY_EFFORT if picture.ndim == 2 else COLOUR_EFFORT
    return bytes(imagecodecs.jpegxl_encode(picture, lossless=True, effort=effort, numthreads=1))


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


CODECS: dict[str, tuple[str, Callable[[Picture], bytes]]] = {
    "png": ("PNG", png),
    "webp": ("WebP, lossless", webp),
    "jpeg_xl": ("JPEG XL, lossless", jpeg_xl),
}
"""By name: the label in tables, and the encoder."""
