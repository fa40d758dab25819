"""Reads photographs of any common format into upright RGB, and tells which ones can be used."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
RGB_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
ALPHA_MODES = ("RGBA", "LA", "PA")


@dataclass(frozen=True)
class Photograph:
    """What looking at one file told.

    ``name`` is relative to the source folder; ``size`` is (width, height) in pixels; ``gray`` means that red,
    green and blue agree in every pixel; ``problem`` says why the file cannot be used, or is None.
    """

    name: str
    path: Path
    size: tuple[int, int] = (0, 0)
    gray: bool = False
    sha256: str = ""
    problem: str | None = None


def read_rgb(path: Path) -> Image.Image:
    """Read a photograph.

    Args:
        path: the file.

    Returns:
        The photograph turned upright by its EXIF tag, as RGB; transparent pixels are laid over white.

    Raises:
        ValueError: if the file cannot be decoded, or holds other pixels than 8-bit or 16-bit unsigned ones.
    """
    try:
        with warnings.catch_warnings():
            # pictures of over 90 megapixels are welcome here; PIL still refuses those over twice that
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ValueError(
            f"cannot be decoded: {str(error).splitlines()[0] if str(error) else repr(error)}"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError("has too many pixels") from None
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode not in RGB_MODES:
        raise ValueError(f"has pixels of kind {image.mode}, which is not supported")
    return image.convert("RGB")


def inspect(job: tuple[str, Path, int]) -> Photograph:
    """Look at one (name, path, smallest side): decode it whole, since a broken file only shows then."""
    name, path, smallest = job
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        image = read_rgb(path)
    except OSError as error:
        return Photograph(name, path, problem=f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Photograph(name, path, problem=str(error))
    if min(image.size) < smallest:
        return Photograph(name, path, problem=f"is too small: {image.width}×{image.height}")
    pixels = np.asarray(image)
    gray = bool((pixels == pixels[..., :1]).all())
    return Photograph(name, path, image.size, gray, digest)
