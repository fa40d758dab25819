"""What is kept of a scoring while images stream through: open files, two heaps, a few sums."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dualscore.pictures import heat
from dualscore.scoring import sheet, tables
from dualscore.scoring.photograph_means import RunningMean
from dualscore.scoring.score_batch import Scores
from dualscore.scoring.stream import NOT_FINITE, Problems

SHEET_EACH = 30
"""Thumbnails kept of the most probable images, and as many of the least."""


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
class Results:
    """What is open and what is kept while images stream through."""

    options: Options
    scores: IO[str]
    problems: Problems
    writer: ThreadPoolExecutor
    mean: RunningMean
    """Of the bits/dim."""
    written: "Future[None] | None" = None
    extremes: sheet.Extremes = field(default_factory=lambda: sheet.Extremes(SHEET_EACH))
    scale: tuple[float, float] | None = None

    def add(self, paths: Sequence[str], scores: Scores) -> None:
        """Append a batch's rows, write its maps, and keep the extremes."""
        finite = scores.finite()
        maps = scores.maps.numpy()
        if self.scale is None and finite.any():
            self.scale = heat.common_scale(maps[finite.numpy()])
        if self.scale is None:
            self.problems.add([(path, NOT_FINITE) for path in paths])
            return
        scale = self.scale
        images = scores.pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        rows = self._rows(paths, scores, finite.tolist())
        for j, row in rows.items():
            self.mean.add(row.file, row.bits_per_dim)
            self.extremes.add(
                row.bits_per_dim,
                lambda: sheet.Thumbnail(row, images[j].copy(), heat.colour(maps[j], scale)),  # noqa: B023 - called at once
            )
        if self.options.maps:
            # Beside the next batch's forward pass: making files is mostly waiting.
            self.finish()  # so that one batch waits at most, and a full disk is noticed
            names = [str(row.map) for row in rows.values()]
            self.written = self.writer.submit(_save, self.options.out, names, maps[finite.numpy()], scale)
        tables.append(self.scores, [tables.values(row) for row in rows.values()])

    def finish(self) -> None:
        """Wait for what is still being written."""
        if self.written is not None:
            self.written.result()

    def _rows(self, paths: Sequence[str], scores: Scores, finite: Sequence[bool]) -> dict[int, tables.Row]:
        """Rows of the images with finite figures, by their place in the batch; the others are told."""
        empty = [None] * len(paths)
        bits, decibels = scores.bits.tolist(), scores.decibels.tolist()
        percentile = empty if scores.percentile is None else scores.percentile.tolist()
        effective = scores.effective_dimension
        dimension, error = (empty, empty) if effective is None else effective.T.tolist()
        rows = {}
        number = self.extremes.seen
        for j, path in enumerate(paths):
            if not finite[j]:
                self.problems.add([(path, NOT_FINITE)])
                continue
            stem = os.path.splitext(os.path.basename(path))[0]
            name = f"maps/{number:06d}-{stem[:40]}.png" if self.options.maps else None
            rows[j] = tables.Row(path, bits[j], decibels[j], percentile[j], dimension[j], error[j], name)
            number += 1
        return rows


def _save(folder: Path, names: Sequence[str], maps: NDArray[np.float64], scale: tuple[float, float]) -> None:
    for name, pixels in zip(names, heat.colour(maps, scale), strict=True):
        Image.fromarray(pixels).save(folder / name, compress_level=1)
