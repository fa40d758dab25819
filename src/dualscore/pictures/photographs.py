"""Reads photographs of any common format into upright RGB: for data sets and for scoring alike."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from dualscore.pictures.walk import not_the_files

RGB_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
ALPHA_MODES = ("RGBA", "LA", "PA")
WITH_PREVIEWS = ("MPO", "PSD")
"""Formats whose first picture is the photograph, and others belong to it: gain maps, previews, layers."""
EXACT = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of which Pillow tells what is in them; of others it cuts some to 8 bits without a word."""
_PLANES, _BITS = 284, 258  # tags of TIFF
_ADDRESS = re.compile(r" <[^<>]* at 0x[0-9a-f]+>")


class UnsuitableError(ValueError):
    """A photograph that could be decoded, but that is not wanted."""


def read_rgb(path: Path | IO[bytes], check: Callable[[tuple[int, int]], None] | None = None) -> Image.Image:
    """Read a photograph as RGB, turned upright by its EXIF tag; transparent pixels are laid over white.

    `check` is told (width, height), as they are stored, before anything is decoded, and may raise
    UnsuitableError, as what is not one picture does, or has pixels that are neither 8-bit nor 16-bit unsigned
    numbers. A plain ValueError says that the file cannot be decoded, whatever Pillow met in it.
    """
    return _read(path, check, lambda file: _as_rgb(ImageOps.exif_transpose(file)))


def _read(
    path: Path | IO[bytes],
    check: Callable[[tuple[int, int]], None] | None,
    made: Callable[[Image.Image], Image.Image],
    refuse: Callable[[Image.Image], None] = lambda _: None,
) -> Image.Image:
    """What is made of the one picture in a file; errors as of `read_rgb`."""
    try:
        with warnings.catch_warnings():
            # pictures of over 90 megapixels are welcome here; PIL still refuses those over twice that
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                if check is not None:
                    check(file.size)
                _check_one_picture(file)
                refuse(file)
                file.load()
                return made(file)
    except UnsuitableError:
        raise
    except Image.DecompressionBombError:
        raise ValueError("has too many pixels") from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes Pillow raise what its bytes lead to
        not_the_files(error)
        what = str(error).splitlines()[0] if str(error) else repr(error)
        what = _ADDRESS.sub("", what)  # of bytes that Pillow names by their place in memory
        raise ValueError(f"cannot be decoded: {what}") from None


def read_exact(path: Path | IO[bytes], check: Callable[[tuple[int, int]], None] | None = None) -> Image.Image:
    """Read a picture of 8 bits without losing anything of it, as L or RGB; turned upright by its EXIF tag.

    An UnsuitableError says what would be lost of one that has more: transparency, 16 bits, inks; and refuses
    formats that are not `EXACT`.
    """

    def whole(file: Image.Image) -> Image.Image:
        if file.mode not in ("1", "L", "P", "RGB") or file.has_transparency_data:
            what = "transparency" if file.has_transparency_data else file.mode
            raise UnsuitableError(f"has pixels of kind {what}, of which something would be lost; convert it")
        return ImageOps.exif_transpose(file).convert("L" if file.mode in ("1", "L") else "RGB")

    return _read(path, check, whole, _refuse_deep)


def _refuse_deep(file: Any) -> None:  # noqa: ANN401 - what Pillow is going to read, its types do not say
    """Refuse colours of 16 bits, and of scales that are not 255: Pillow reads them as RGB of 8 bits."""
    if file.format not in EXACT:
        raise UnsuitableError(f"is {file.format}, of which more than 8 bits may be lost; convert it to PNG")
    for tile in getattr(file, "tile", []):
        scale = tile.args[1] if tile.codec_name == "ppm" else 255
        if ";16" in str(tile.args) or scale != 255:
            raise UnsuitableError(
                "has 16 bits a colour, or levels other than 256, which would be lost; convert it"
            )


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode not in RGB_MODES:
        raise UnsuitableError(f"has pixels of kind {image.mode}, which is not supported")
    return image.convert("RGB")


def _check_one_picture(file: Image.Image) -> None:
    """Refuse what Pillow would read in part, or wrongly: animations, pages, 16-bit planes."""
    if (frames := getattr(file, "n_frames", 1)) > 1 and file.format not in WITH_PREVIEWS:
        what = f"has {frames} pages" if file.format == "TIFF" else f"is animated, {frames} frames"
        raise UnsuitableError(f"{what}: not one picture")
    if file.format == "TIFF":
        tags = getattr(file, "tag_v2", {})
        if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (8,))) > 8:  # Pillow takes them for interleaved
            raise UnsuitableError("has planes of 16-bit colour, which are not supported; interleave them")
