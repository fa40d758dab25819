"""Which pictures are coded, with which model, under which names."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dualscore.compression.container import as_png
from dualscore.compression.encoder import Given
from dualscore.errors import CodingError
from dualscore.files.plain_text import printable
from dualscore.model import ImageModel
from dualscore.scoring.image_files import Problems, check_pixels, read_exactly
from dualscore.scoring.photograph_scores import is_gray
from dualscore.scoring.picture_stream import Picture

LONGEST_NAME = 200
"""Bytes of a name in the file; a disk takes 255, with an ending."""


def exactly(file: Path | IO[bytes]) -> NDArray[np.uint8]:
    """A picture's pixels, (1, H, W) or (3, H, W); a ValueError says what of it would be lost."""
    image = np.asarray(read_exactly(file, check_pixels))
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


class Wanted:
    """Pictures that a model is there for.

    Args:
        models: one, or that of colour and that of gray, with their names.
        given: files and folders that were asked for.
        problems: takes the others.
    """

    def __init__(
        self, models: Sequence[tuple[str, ImageModel]], given: Sequence[Path], problems: Problems
    ) -> None:
        self.models, self.given, self.problems = models, set(given), problems
        self._names, self._pictures = set[str](), set[str]()  # of pictures and folders, and of pictures
        self._again = Counter[Path]()

    def of(self, stream: Iterator[Picture]) -> Iterator[Given]:
        """Those that can be coded, as their models take them."""
        for picture in stream:
            if picture.pixels is None:
                self.problems.add([(picture.name, picture.problem)])
                continue
            rgb = len(picture.pixels) == 3
            gray = not rgb or is_gray(picture.pixels)
            name, model = self.models[-1 if gray else 0]
            channels = channels_of(name, model)
            if channels == 1 and not gray:
                self.problems.add([(picture.name, f"is in colour, and {name} is a model of gray images")])
                continue
            pixels = picture.pixels[:1] if channels == 1 else picture.pixels
            pixels = np.repeat(pixels, 3, axis=0) if channels > len(pixels) else pixels
            yield Given(self._short(picture.name), name, rgb, pixels)

    def _short(self, name: str) -> str:
        """A picture's name below what was given, which no other has, and any disk takes."""
        path = Path(name)
        place = next((folder for folder in path.parents if folder in self.given), None)
        if place is not None:
            path = path.relative_to(place if place.is_dir() else place.parent)
        outside = path.is_absolute() or ".." in path.parts or path in self.given
        shown = printable(path.name if outside else str(path)).replace("\\", "?")
        short = Path(*(_cut_short(part) for part in Path(shown).parts))
        if any(str(folder) in self._pictures for folder in short.parents):
            short = Path(short.name)
        found = str(short)
        while as_png(found) in self._names:
            self._again[short] += 1
            found = str(short.with_name(f"{short.stem}-{self._again[short] + 1}{short.suffix}"))
        # A picture has no other below it, as a folder would.
        self._pictures.add(as_png(found))
        self._names |= {as_png(found), *map(str, Path(found).parents)}
        return found


def _cut_short(part: str) -> str:
    """A part of a path of at most `LONGEST_NAME` bytes, with its ending."""
    if len(part.encode()) <= LONGEST_NAME:
        return part
    return part.encode()[: LONGEST_NAME - 8].decode(errors="ignore") + Path(part).suffix[:8]


def channels_of(name: str, model: ImageModel) -> int:
    """1 or 3; a CodingError refuses models that were saved without what a code needs."""
    if model.image_shape is None or model.image_shape[0] not in (1, 3) or model.prior is None:
        raise CodingError(f"{name}: was saved without its images' size and Gaussian, where a code ends")
    return model.image_shape[0]
