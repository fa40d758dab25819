"""Which photograph an image file is of, and means whose errors are over photographs.

Crops of one photograph resemble each other, so an error over crops is far too small. No manifest says what
files were cut from, so their folders do.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dualscore.likelihood import Estimate
from dualscore.scoring.image_files import is_picture


def photograph_of(given: Sequence[Path]) -> Callable[[str], str]:
    """A function from a file's name, as `find` yields it, to its photograph: a sub-folder, or itself.

    If a given folder holds pictures in its sub-folders only, each sub-folder is a photograph. Any other file
    is a photograph of its own.
    """
    parted = [path for path in given if path.is_dir() and not _holds_pictures(path)]

    def photograph(file: str) -> str:
        path = Path(file)
        for folder in parted:
            if path.is_relative_to(folder):
                return str(folder / path.relative_to(folder).parts[0])
        return file

    return photograph


def _holds_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_picture(entry.name) and not entry.is_dir() for entry in entries)
    except OSError:
        return False


@dataclass(frozen=True)
class Counted:
    """How many photographs there are; prints as `2 photographs (sub-folders)`."""

    folders: int
    own: int
    """Images that are photographs of their own."""

    @staticmethod
    def of(files: Sequence[str], photographs: Sequence[str]) -> "Counted":
        """Count the photographs of files, given one name a file."""
        named = set(zip(files, photographs, strict=True))
        folders = {photograph for file, photograph in named if photograph != file}
        return Counted(len(folders), sum(file == photograph for file, photograph in named))

    @property
    def total(self) -> int:
        """All photographs."""
        return self.folders + self.own

    def __str__(self) -> str:
        count = "one photograph" if self.total == 1 else f"{self.total:,} photographs"
        if not self.own:
            return f"{count} ({'sub-folder' if self.folders == 1 else 'sub-folders'})"
        if not self.folders:
            return f"{count} ({'the image' if self.own == 1 else 'each image its own'})"
        return f"{count} ({self.folders:,} by sub-folder, {self.own:,} by image)"


@dataclass
class RunningMean:
    """The mean over a stream of files, with `likelihood.mean`'s error over photographs, from a few sums."""

    photograph: Callable[[str], str]
    """A file → its photograph."""
    images: int = 0
    total: float = 0.0
    own: int = 0
    own_total: float = 0.0
    own_squares: float = 0.0
    sums: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Number of images and their sum, for each sub-folder."""

    def add(self, file: str, value: float) -> None:
        """Take a file's value."""
        self.images, self.total = self.images + 1, self.total + value
        photograph = self.photograph(file)
        if photograph == file:
            self.own, self.own_total = self.own + 1, self.own_total + value
            self.own_squares += value**2
        else:
            count, total = self.sums.get(photograph, (0, 0.0))
            self.sums[photograph] = count + 1, total + value

    @property
    def counted(self) -> Counted:
        """The photographs so far."""
        return Counted(len(self.sums), self.own)

    def estimate(self) -> Estimate:
        """The mean and its standard error, which is NaN for one photograph."""
        center, groups = self.total / self.images, self.counted.total
        if groups == 1:
            return Estimate(center, math.nan, 1)
        # Σ_g w_g² (m_g − m)² / (1 − w_g), and with w_g = 1/n for images that are photographs of their own.
        spread = self.own_squares - 2.0 * center * self.own_total + self.own * center**2
        variance = max(0.0, spread) / (self.images * (self.images - 1))
        for count, total in self.sums.values():
            share = count / self.images
            variance += ((total - count * center) / self.images) ** 2 / (1.0 - share)
        return Estimate(center, math.sqrt(variance), groups)
