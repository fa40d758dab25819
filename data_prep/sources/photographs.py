"""Looks at photographs, and tells which ones can be used."""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.sources.near_copies import waves
from dualscore.errors import DataError
from dualscore.pictures.photographs import read_rgb
from dualscore.pictures.walk import not_the_files

OTHER_COLOURS = ("1", "P", "PA", "CMYK")
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")


@dataclass(frozen=True)
class Photograph:
    """A file, and what looking at it told.

    ``name`` is relative to the source folder; ``size`` is (width, height) in pixels; ``gray`` means that red,
    green and blue agree in every pixel; ``problem`` says why the file cannot be used, or is None; ``content``
    is the file's, where it lies in an archive; ``waves`` tells near copies, and ``worth`` which of them is
    the best: the larger one, then the one without loss, then the longer file.
    """

    name: str
    path: Path
    size: tuple[int, int] = (0, 0)
    gray: bool = False
    sha256: str = ""
    problem: str | None = None
    content: bytes | None = None
    waves: bytes = b""
    worth: tuple[int, int, int] = (0, 0, 0)

    def read(self) -> Image.Image:
        """Decode it, as `read_rgb` does."""
        return read_rgb(self.path if self.content is None else io.BytesIO(self.content))


def read_again(photograph: Photograph) -> Image.Image:
    """Decode a photograph that was looked at; DataError if it is not what it was."""
    try:
        image = photograph.read()
    except (OSError, ValueError) as error:
        raise DataError(f"{photograph.path} changed while it was read ({error}): run again") from None
    if image.size != photograph.size:
        raise DataError(f"{photograph.path} changed its size while it was read: run again")
    return image


def inspect(job: tuple[Photograph, int]) -> Photograph:
    """Look at one (file, smallest side): decode it whole, since a broken file only shows then."""
    found, smallest = job
    try:
        raw = found.path.read_bytes() if found.content is None else found.content
        image = found.read()
    except OSError as error:
        not_the_files(error)
        return replace(found, problem=f"cannot be read: {error.strerror}")
    except ValueError as error:
        return replace(found, problem=str(error))
    if min(image.size) < smallest:
        return replace(found, problem=f"is too small: {image.width}×{image.height}")
    pixels = np.asarray(image)
    gray = bool((pixels == pixels[..., :1]).all())
    digest = hashlib.sha256(raw).hexdigest()
    worth = image.width * image.height, _faithful(raw), len(raw)
    return replace(found, size=image.size, gray=gray, sha256=digest, waves=waves(image), worth=worth)


def _faithful(raw: bytes) -> int:
    """2 for a picture kept without loss, 1 with loss, 0 with other colours than it was taken in."""
    with Image.open(io.BytesIO(raw)) as file:
        if file.mode in OTHER_COLOURS:
            return 0
        return 1 if file.format in LOSSY else 2
