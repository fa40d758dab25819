"""`dualscore score`: from a model and image files to scores on disk, as a stream of any length."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dualscore.devices import allow_tf32, find_device
from dualscore.errors import ScoreError
from dualscore.evaluation.open_checkpoint import DEFINITIONS
from dualscore.evaluation.store import RowStore, read_json
from dualscore.files.aside import sha256
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.pictures.grids import colour, common_scale
from dualscore.scoring import score_files
from dualscore.scoring.image_files import Problems, StreamOptions, check_given, progress_bar
from dualscore.scoring.photograph_means import RunningMean, photograph_of
from dualscore.scoring.scorer import NOT_FINITE, Reference, Scorer, Scores, check_level, start, wanted_size
from dualscore.terminal import final

SHEET_EACH, TABLE_EACH = 30, 10
"""How many of the most probable images, and of the least, the sheet and the table show."""
REPORTED = {"val": "validation images", "test": "test images"}
"""Splits that an evaluation reports, and what their images are called."""


@dataclass(frozen=True)
class ScoreOptions(StreamOptions):
    """How to score."""

    out: Path = Path("scores")
    """Folder for the results."""
    psnr: float | None = None
    """Noise level of the effective dimension in dB; None to leave it out."""
    maps: bool = True
    """Write a heat map of each image."""


@dataclass
class Results:
    """What is open and what is kept while images stream through."""

    options: ScoreOptions
    scores: IO[str]
    problems: Problems
    writer: ThreadPoolExecutor
    mean: RunningMean
    """Of the bits/dim."""
    written: "Future[None] | None" = None
    extremes: score_files.Extremes = field(default_factory=lambda: score_files.Extremes(SHEET_EACH))
    scale: tuple[float, float] | None = None

    def add(self, paths: Sequence[str], scores: Scores) -> None:
        """Append a batch's rows, write its maps, and keep the extremes."""
        finite = scores.finite().tolist()
        kept = [j for j, known in enumerate(finite) if known]
        self.problems.add(
            [(path, NOT_FINITE) for path, known in zip(paths, finite, strict=True) if not known]
        )
        if not kept:
            return
        maps = scores.maps.numpy()[kept]
        scale = self.scale = self.scale or common_scale(maps)
        images = scores.pixels[kept].permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        rows = self._rows(paths, scores, kept)
        for row, image, heat in zip(rows, images, maps, strict=True):
            self.mean.add(row.file, row.bits_per_dim)
            self.extremes.add(
                row.bits_per_dim,
                lambda: score_files.Thumbnail(row, image.copy(), colour(heat, scale)),  # noqa: B023 - called at once
            )
        if self.options.maps:
            # Beside the next batch's forward pass: making files is mostly waiting.
            self.finish()  # so that one batch waits at most, and a full disk is noticed
            names = [str(row.map) for row in rows]
            self.written = self.writer.submit(_save, self.options.out, names, maps, scale)
        score_files.append(self.scores, [score_files.values(row) for row in rows])

    def finish(self) -> None:
        """Wait for the maps that are still being written."""
        if self.written is not None:
            self.written.result()

    def _rows(self, paths: Sequence[str], scores: Scores, kept: Sequence[int]) -> list[score_files.Row]:
        rows = []
        for number, j in enumerate(kept, self.extremes.seen):
            stem = os.path.splitext(os.path.basename(paths[j]))[0]
            name = f"maps/{number:06d}-{stem[:40]}.png" if self.options.maps else None
            effective = scores.effective_dimension
            dimension, error = (None, None) if effective is None else effective[j].tolist()
            percentile = None if scores.percentile is None else float(scores.percentile[j])
            bits, decibels = float(scores.bits[j]), float(scores.decibels[j])
            rows.append(score_files.Row(paths[j], bits, decibels, percentile, dimension, error, name))
        return rows


def _save(folder: Path, names: Sequence[str], maps: NDArray[np.float64], scale: tuple[float, float]) -> None:
    for name, pixels in zip(names, colour(maps, scale), strict=True):
        Image.fromarray(pixels).save(folder / name, compress_level=1)


def find_reference(checkpoint: Path) -> Reference | None:
    """Energies of the most images that an evaluation of exactly this checkpoint reported."""
    wanted = {"checkpoint": sha256(checkpoint), "definitions": DEFINITIONS}
    found = []
    # Where `evaluate` keeps them: in the run's folder, or beside the checkpoint that it was given.
    for root in (checkpoint.parent.parent / "evaluation", checkpoint.parent / "evaluation"):
        for description in sorted(root.glob("paper-*/identity.json")):
            identity = read_json(description)
            which = REPORTED.get(identity.get("split", ""))
            if which and all(identity.get(key) == value for key, value in wanted.items()):
                energies = RowStore(root, "paper", identity, rank=0).read().get("energy")
                if energies is not None and len(energies):
                    found.append(Reference(energies, str(description.parent), which))
    return max(found, key=lambda reference: len(reference.energies), default=None)


def score(model_path: Path, given: Sequence[Path], options: ScoreOptions, console: Console) -> dict[str, Any]:
    """Score image files and folders with a checkpoint, or with the best one of a run's folder.

    Returns what scores.json begins with. Unusable files are counted; a DualscoreError if all are.
    """
    checkpoint = locate(model_path)
    check_given(given, options.out)
    return score_with(load(checkpoint), checkpoint, given, options, console)


def score_with(
    model: ImageModel, checkpoint: Path, given: Sequence[Path], options: ScoreOptions, console: Console
) -> dict[str, Any]:
    """Write scores.csv as images come, then scores.json and sheet.png; failures.csv and maps/ beside.

    The evaluation of `checkpoint` holds the energies that images are ranked among.
    """
    allow_tf32(False)
    if options.psnr is not None:
        check_level(options.psnr, model.t_max)
    size = wanted_size(model, given, options.out, resize=options.resize, normalize=options.normalize)
    model = model.to(find_device(options.device))
    own_size = model.image_shape is not None and model.image_shape[1:] == (size.height, size.width)
    reference = _reference(model, checkpoint) if own_size else None
    _prepare(options.out, options.maps)
    with ExitStack() as stack:
        columns = {"scores": score_files.COLUMNS, "failures": ["file", "reason"]}
        scores, failures = (
            stack.enter_context(score_files.open_csv(options.out / f"{name}.csv", names))
            for name, names in columns.items()
        )
        writer = stack.enter_context(ThreadPoolExecutor(1))
        problems = Problems(console, failures)
        results = Results(options, scores, problems, writer, RunningMean(photograph_of(given)))
        failure = "no image could be scored"
        model, chunks = start(model, given, options.out, size, options, problems, failure)
        scorer = Scorer(model, reference, options.psnr)
        with progress_bar(console) as progress:
            task = progress.add_task("scored", total=None)
            for chunk in chunks:
                results.add(chunk.paths, scorer(chunk.images))
                progress.advance(task, len(chunk.paths))
            results.finish()
    problems.tell()
    if not results.extremes.seen:
        raise ScoreError(f"{failure}: {problems.first}")
    summary = _summary(model, checkpoint, results, reference)
    score_files.write_json(options.out / "scores.json", summary, options.out / "scores.csv")
    assert results.scale is not None
    kept = results.extremes.sorted()
    score_files.draw_sheet(kept, results.extremes.seen, results.scale).save(options.out / "sheet.png")
    _tell(kept, summary, results, console)
    return summary


def _reference(model: ImageModel, checkpoint: Path) -> Reference | None:
    """The energies to rank among: in a model file itself, or beside a checkpoint."""
    if model.origin is not None and model.origin.energies is not None:
        return Reference(model.origin.energies, str(checkpoint), "images kept in the model file")
    return find_reference(checkpoint) if checkpoint.is_file() else None


def _prepare(out: Path, maps: bool) -> None:
    """Make the folder, and remove earlier results."""
    (out / "maps" if maps else out).mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "maps").glob("[0-9]" * 6 + "*-*.png"), out / "scores.json", out / "sheet.png"):
        stale.unlink(missing_ok=True)


def _summary(
    model: ImageModel, checkpoint: Path, results: Results, reference: Reference | None
) -> dict[str, Any]:
    mean = results.mean.estimate()
    assert model.image_shape is not None
    validation = None
    if reference is not None:
        validation = {"images": len(reference.energies), "rows": reference.source, "which": reference.which}
    return {
        "model": model.provenance,
        "checkpoint": str(checkpoint),
        "image_shape": list(model.image_shape),
        "log_normalizer": model.log_normalizer,
        "normalization": None if model.normalization is None else model.normalization.plain(),
        "images": results.mean.images,
        "photographs": results.mean.counted.total,
        "failed": results.problems.count,
        "mean_bits_per_dim": mean.value,
        "stderr": None if math.isnan(mean.stderr) else mean.stderr,
        "effective_dimension_at_psnr": results.options.psnr,
        "map_scale_bits": results.scale,
        "validation": validation,
    }


def _tell(
    kept: Sequence[score_files.Thumbnail], summary: dict[str, Any], results: Results, console: Console
) -> None:
    images, out, failed = summary["images"], results.options.out, summary["failed"]
    if images > 2 * TABLE_EACH:
        kept = [*kept[:TABLE_EACH], *kept[-TABLE_EACH:]]
    final(console, score_files.score_table([thumbnail.row for thumbnail in kept], images))
    stderr = "" if summary["stderr"] is None else f" ± {summary['stderr']:.3f}"
    counted = "one image" if images == 1 else f"{images:,} images"
    left_out = f"; {failed:,} left out, see {out / 'failures.csv'}" if failed else ""
    over = results.mean.counted
    if images > 1:
        counted += f", {over}: no error" if over.total == 1 else f"; ± is over {over}"
    lines = [f"{summary['mean_bits_per_dim']:.3f}{stderr} bits/dim, the mean of {counted}{left_out}"]
    if summary["validation"] is None:
        lines.append(
            "no percentiles: no evaluation of this checkpoint on images of this size was found; "
            "dualscore evaluate EXPERIMENT measures the validation images"
        )
    else:
        among = f"{summary['validation']['images']:,} {summary['validation']['which']}"
        lines.append(f"percentile: of {among}, how many are less probable")
    maps = ", maps/" if results.options.maps else ""
    lines.append(f"written to {out}: scores.csv, scores.json, failures.csv, sheet.png{maps}")
    for line in lines:
        final(console, line, soft_wrap=True)
