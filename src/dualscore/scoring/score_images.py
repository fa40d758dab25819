"""From a model and files to scores on disk: a stream, whatever the number of files."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from dualscore.devices import allow_tf32, find_device
from dualscore.errors import ScoreError
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.pictures.photographs import SUFFIXES
from dualscore.scoring import files, sheet, tables
from dualscore.scoring.kept_scores import Options, Results
from dualscore.scoring.photograph_means import RunningMean, photograph_of
from dualscore.scoring.reference import Reference, find_reference
from dualscore.scoring.score_batch import Scorer
from dualscore.scoring.size import normalized, wanted_size
from dualscore.scoring.stream import Problems, check_level, progress_bar, usable
from dualscore.terminal import final
from dualscore.terminal.hints import command

TABLE_EACH = 10
"""Rows shown of the most probable images, and as many of the least."""


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
    checkpoint = locate(model_path)
    files.check_given(given, options.out)
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
    if options.psnr is not None:
        check_level(options.psnr, model.t_max)
    size = wanted_size(model, given, options.out, resize=options.resize, normalize=options.normalize)
    model = model.to(find_device(options.device))
    own_size = model.image_shape is not None and model.image_shape[1:] == (size.height, size.width)
    reference = _reference(model, checkpoint) if own_size else None
    _prepare(options.out, options.maps)
    loader = files.load(files.ImageFiles(given, options.out, size, options.batch_size), options.workers)
    with ExitStack() as stack:
        columns = {"scores": tables.COLUMNS, "failures": ["file", "reason"]}
        opened = {n: tables.open_csv(options.out / f"{n}.csv", c) for n, c in columns.items()}
        for file in opened.values():
            stack.enter_context(file)
        writer = stack.enter_context(ThreadPoolExecutor(1))
        problems = Problems(console, opened["failures"])
        mean = RunningMean(photograph_of(given))
        results = Results(options, opened["scores"], problems, writer, mean)
        chunks = usable(iter(loader), problems)
        first = next(chunks, None)
        if first is None:
            problem = problems.first or f"{given[0]} holds no image ({', '.join(SUFFIXES)})"
            raise ScoreError(f"no image could be scored: {problem}")
        model = normalized(model, first.images, size)
        scorer = Scorer(model, reference, options.psnr)
        with progress_bar(console) as progress:
            task = progress.add_task("scored", total=None)
            for chunk in chain([first], chunks):
                results.add(chunk.paths, scorer(chunk.images))
                progress.advance(task, len(chunk.paths))
            results.finish()
    problems.tell()
    if not results.extremes.seen:
        raise ScoreError(f"no image could be scored: {problems.first}")
    summary = _summary(model, checkpoint, results)
    summary["validation"] = (
        None
        if reference is None
        else {"images": len(reference.energies), "rows": reference.source, "which": reference.which}
    )
    tables.write_json(options.out / "scores.json", summary, options.out / "scores.csv")
    assert results.scale is not None
    kept = results.extremes.sorted()
    sheet.draw_sheet(kept, results.extremes.seen, results.scale).save(options.out / "sheet.png")
    _tell(kept, summary, results, console)
    return summary


def _reference(model: ImageModel, checkpoint: Path) -> Reference | None:
    """The validation images' energies: in a model file itself, or beside a checkpoint."""
    if model.origin is not None and model.origin.energies is not None:
        return Reference(model.origin.energies, str(checkpoint), "images kept in the model file")
    return find_reference(checkpoint) if checkpoint.is_file() else None


def _prepare(out: Path, maps: bool) -> None:
    """Make the folder, without the results of another time."""
    (out / "maps" if maps else out).mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "maps").glob("[0-9]" * 6 + "*-*.png"), out / "scores.json", out / "sheet.png"):
        stale.unlink(missing_ok=True)


def _summary(model: ImageModel, checkpoint: Path, results: Results) -> dict[str, Any]:
    mean = results.mean.estimate()
    assert model.image_shape is not None
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
    }


def _tell(
    kept: Sequence[sheet.Thumbnail], summary: dict[str, Any], results: Results, console: Console
) -> None:
    images, out = summary["images"], results.options.out
    if images > 2 * TABLE_EACH:
        kept = [*kept[:TABLE_EACH], *kept[-TABLE_EACH:]]
    final(console, tables.score_table([thumbnail.row for thumbnail in kept], images))
    stderr = "" if summary["stderr"] is None else f" ± {summary['stderr']:.3f}"
    counted = "one image" if images == 1 else f"{images:,} images"
    left_out = (
        f"; {results.problems.count:,} left out, see {out / 'failures.csv'}" if results.problems.count else ""
    )
    over = results.mean.counted
    if images > 1:
        counted += f", {over}: no error" if over.total == 1 else f"; ± is over {over}"
    lines = [f"{summary['mean_bits_per_dim']:.3f}{stderr} bits/dim, the mean of {counted}{left_out}"]
    if summary["validation"] is None:
        lines.append(
            "no percentiles: no evaluation of this checkpoint on images of this size was found; "
            f"{command('evaluate', 'EXPERIMENT', variables={'EXP': '…'})} measures the validation images"
        )
    else:
        among = f"{summary['validation']['images']:,} {summary['validation']['which']}"
        lines.append(f"percentile: of {among}, how many are less probable")
    lines.append(
        f"written to {out}: scores.csv, scores.json, failures.csv, sheet.png"
        + (", maps/" if results.options.maps else "")
    )
    for line in lines:
        final(console, line, soft_wrap=True)
