"""What is kept of a scoring while images stream through: open files, two heaps, a few sums."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dualscore.plain_text import printable
from dualscore.scoring import sheet, tables
from dualscore.scoring.batch import Scores

SHEET_EACH = 30
"""Thumbnails kept of the most probable images, and as many of the least."""
PROBLEMS_SHOWN = 10
NOT_FINITE = "has an energy or a denoised image that is not finite"


@dataclass(frozen=True)
class Options:
    """How to score."""

    out: Path = Path("scores")
    """Folder for the results."""
    psnr: float | None = None
    """Noise level of the effective dimension in dB; None to leave it out."""
    resize: bool = False
    """Crop and resize images of other sizes."""
    normalize: bool = False
    """Estimate log Z on the first images where it is not known for their size."""
    maps: bool = True
    """Write a heat map of each image."""
    batch_size: int = 128
    workers: int = 0
    """Processes that decode."""
    device: str = "cpu"


@dataclass
class LeftOut:
    """Tells of files that could not be used, and counts them."""

    console: Console
    count: int = 0
    first: str = ""
    """What was said of the first one."""

    def add(self, problems: Sequence[tuple[str, str]]) -> None:
        """Count files, with the reasons; the first few are shown."""
        for path, reason in problems:
            self.count += 1
            line = f"{printable(path)} {reason}"
            self.first = self.first or line
            if self.count <= PROBLEMS_SHOWN:
                self.console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)


@dataclass
class Results:
    """What is open and what is kept while images stream through."""

    options: Options
    scores: IO[str]
    failures: IO[str]
    left_out: LeftOut
    writer: ThreadPoolExecutor
    written: "Future[None] | None" = None
    extremes: sheet.Extremes = field(default_factory=lambda: sheet.Extremes(SHEET_EACH))
    scale: tuple[float, float] | None = None
    total: float = 0.0
    squares: float = 0.0

    def fail(self, problems: Sequence[tuple[str, str]]) -> None:
        """Report and count files, with the reasons."""
        tables.append(self.failures, problems)
        self.left_out.add(problems)

    def add(self, paths: Sequence[str], scores: Scores) -> None:
        """Append a batch's rows, write its maps, and keep the extremes."""
        finite = scores.finite()
        if self.scale is None and finite.any():
            self.scale = sheet.common_scale(scores.maps[finite].numpy())
        if self.scale is None:
            self.fail([(path, NOT_FINITE) for path in paths])
            return
        images = scores.pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        heat = sheet.colour(scores.maps.nan_to_num().numpy(), self.scale)
        rows = []
        pictures = {}
        for j, path in enumerate(paths):
            if not finite[j]:
                self.fail([(path, NOT_FINITE)])
                continue
            bits = float(scores.bits[j])
            row = self._row(path, j, bits, scores)
            if row.map is not None:
                pictures[self.options.out / row.map] = heat[j]
            self.total, self.squares = self.total + bits, self.squares + bits**2
            self.extremes.add(bits, lambda: sheet.Thumbnail(row, images[j].copy(), heat[j].copy()))  # noqa: B023 - called at once
            rows.append(tables.values(row))
        self._write(pictures)
        tables.append(self.scores, rows)

    def _write(self, pictures: dict[Path, NDArray[np.uint8]]) -> None:
        """Write a batch's maps beside the next batch's forward pass: making files is mostly waiting."""
        self.finish()  # so that one batch waits at most, and a full disk is noticed
        self.written = self.writer.submit(_save, pictures)

    def finish(self) -> None:
        """Wait for what is still being written."""
        if self.written is not None:
            self.written.result()

    def _row(self, path: str, j: int, bits: float, scores: Scores) -> tables.Row:
        effective = scores.effective_dimension
        name = f"{self.extremes.seen:06d}-{Path(path).stem[:40]}.png"
        return tables.Row(
            path,
            bits,
            float(scores.decibels[j]),
            None if scores.percentile is None else float(scores.percentile[j]),
            None if effective is None else float(effective[j, 0]),
            None if effective is None else float(effective[j, 1]),
            f"maps/{name}" if self.options.maps else None,
        )


def _save(pictures: dict[Path, NDArray[np.uint8]]) -> None:
    for path, pixels in pictures.items():
        Image.fromarray(pixels).save(path, compress_level=1)
