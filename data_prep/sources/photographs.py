"""Looks at photographs, and tells which ones can be used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualscore.pictures.photographs import read_rgb


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
