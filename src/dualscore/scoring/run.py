"""From a model and files to scores on disk: a stream, whatever the number of files."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from dualscore.checkpoints import load
from dualscore.errors import ScoreError
from dualscore.model import ImageModel
from dualscore.photographs import SUFFIXES
from dualscore.precision import allow_tf32
from dualscore.scoring import files, sheet, tables
from dualscore.scoring.batch import Scorer, Scores
from dualscore.scoring.reference import find_reference
from dualscore.scoring.size import normalized, wanted_size

SHEET_EACH = 30
"""Thumbnails kept of the most probable images, and as many of the least."""
TABLE_EACH = 10
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
class _Results:
    """What is open and what is kept while images stream through."""

    options: Options
    scores: IO[str]
    failures: IO[str]
    console: Console
    writer: ThreadPoolExecutor
    written: "Future[None] | None" = None
    extremes: sheet.Extremes = field(default_factory=lambda: sheet.Extremes(SHEET_EACH))
    scale: tuple[float, float] | None = None
    failed: int = 0
    first_problem: str = ""
    total: float = 0.0
    squares: float = 0.0

    def fail(self, problems: Sequence[tuple[str, str]]) -> None:
        tables.append(self.failures, problems)
        for path, reason in problems:
            self.failed += 1
            line = f"{tables.printable(path)} {reason}"
            self.first_problem = self.first_problem or line
            if self.failed <= PROBLEMS_SHOWN:
                self.console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)

    def add(self, paths: Sequence[str], scores: Scores) -> None:
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


def score(model_path: Path, given: Sequence[Path], options: Options, console: Console) -> dict[str, Any]:
    """Score images with a model from a file; see `score_with`.

    Args:
        model_path: a checkpoint, or a run's folder, of which the best is taken.
        given: image files, and folders of them.
        options: how.
        console: for progress and the table.

    Returns:
        The summary that scores.json begins with.

    Raises:
        DualscoreError: one line for people; files that cannot be used are counted instead, unless all are.
    """
    checkpoint = model_path / "checkpoints" / "best.ckpt" if model_path.is_dir() else model_path
    files.check_given(given)
    return score_with(load(checkpoint), checkpoint, given, options, console)


def score_with(
    model: ImageModel, checkpoint: Path, given: Sequence[Path], options: Options, console: Console
) -> dict[str, Any]:
    """Score images: scores.csv as they come, then scores.json and sheet.png; failures.csv and maps/ beside.

    Args:
        model: the model.
        checkpoint: the file it came from, whose evaluation holds the validation images' energies.
        given: image files, and folders of them.
        options: how.
        console: for progress and the table.

    Returns:
        The summary that scores.json begins with.

    Raises:
        DualscoreError: as `score`.
    """
    allow_tf32(False)
    size = wanted_size(model, given, options.out, resize=options.resize, normalize=options.normalize)
    model = model.to(_device(options.device))
    own_size = model.image_shape is not None and model.image_shape[1:] == (size.height, size.width)
    reference = find_reference(checkpoint) if own_size and checkpoint.is_file() else None
    _prepare(options.out)
    loader = files.load(files.ImageFiles(given, options.out, size, options.batch_size), options.workers)
    with ExitStack() as stack:
        columns = {"scores": tables.COLUMNS, "failures": ["file", "reason"]}
        opened = {n: tables.open_csv(options.out / f"{n}.csv", c) for n, c in columns.items()}
        for file in opened.values():
            stack.enter_context(file)
        writer = stack.enter_context(ThreadPoolExecutor(1))
        results = _Results(options, opened["scores"], opened["failures"], console, writer)
        chunks = _usable(iter(loader), results)
        first = next(chunks, None)
        if first is None:
            problem = results.first_problem or f"{given[0]} holds no image ({', '.join(SUFFIXES)})"
            raise ScoreError(f"no image could be scored: {problem}")
        model = normalized(model, first.images, size)
        scorer = Scorer(model, reference, options.psnr)
        with _progress(console) as progress:
            task = progress.add_task("scored", total=None)
            for chunk in chain([first], chunks):
                results.add(chunk.paths, scorer(chunk.images))
                progress.advance(task, len(chunk.paths))
            results.finish()
    if not results.extremes.seen:
        raise ScoreError(f"no image could be scored: {results.first_problem}")
    summary = _summary(model, checkpoint, results)
    summary["validation"] = (
        None if reference is None else {"images": len(reference.energies), "rows": reference.source}
    )
    tables.write_json(options.out / "scores.json", summary, options.out / "scores.csv")
    assert results.scale is not None
    kept = results.extremes.sorted()
    sheet.draw_sheet(kept, results.extremes.seen, results.scale).save(options.out / "sheet.png")
    _tell(kept, summary, results, console)
    return summary


def _save(pictures: dict[Path, NDArray[np.uint8]]) -> None:
    for path, pixels in pictures.items():
        Image.fromarray(pixels).save(path, compress_level=1)


def _usable(chunks: Iterator[files.Chunk], results: _Results) -> Iterator[files.Chunk]:
    """The batches with an image in them; what failed is reported as it comes."""
    try:
        for chunk in chunks:
            results.fail(chunk.failed)
            if chunk.paths:
                yield chunk
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ScoreError(
            "a loader process died, most often for want of memory: try a smaller --batch-size, or --workers 0"
        ) from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ScoreError(f"--device {name}: {str(error).splitlines()[0]:.200}") from error
    return device


def _prepare(out: Path) -> None:
    """Make the folder, without the results of another time."""
    (out / "maps").mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "maps").glob("[0-9]" * 6 + "*-*.png"), out / "scores.json", out / "sheet.png"):
        stale.unlink(missing_ok=True)


def _summary(model: ImageModel, checkpoint: Path, results: _Results) -> dict[str, Any]:
    images = results.extremes.seen
    mean = results.total / images
    variance = max(0.0, results.squares / images - mean**2)
    assert model.image_shape is not None
    return {
        "model": model.provenance,
        "checkpoint": str(checkpoint),
        "image_shape": list(model.image_shape),
        "log_normalizer": model.log_normalizer,
        "images": images,
        "failed": results.failed,
        "mean_bits_per_dim": mean,
        "stderr": float(np.sqrt(variance / (images - 1))) if images > 1 else None,
        "effective_dimension_at_psnr": results.options.psnr,
        "map_scale_bits": results.scale,
    }


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description} {task.completed:,} images"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _tell(
    kept: Sequence[sheet.Thumbnail], summary: dict[str, Any], results: _Results, console: Console
) -> None:
    images, out = summary["images"], results.options.out
    if images > 2 * TABLE_EACH:
        kept = [*kept[:TABLE_EACH], *kept[-TABLE_EACH:]]
    console.print(tables.score_table([thumbnail.row for thumbnail in kept], images))
    stderr = "" if summary["stderr"] is None else f" ± {summary['stderr']:.3f}"
    left_out = f"; {results.failed:,} left out, see {out / 'failures.csv'}" if results.failed else ""
    lines = [f"{summary['mean_bits_per_dim']:.3f}{stderr} bits/dim, the mean of {images:,} images{left_out}"]
    if summary["validation"] is None:
        lines.append(
            "no percentiles: no evaluation of this checkpoint on images of this size was found; "
            "make evaluate … measures the validation images"
        )
    else:
        count = summary["validation"]["images"]
        lines.append(f"percentile: of {count:,} validation images, how many are less probable")
    lines.append(
        f"written to {out}: scores.csv, scores.json, sheet.png" + (", maps/" if results.options.maps else "")
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
