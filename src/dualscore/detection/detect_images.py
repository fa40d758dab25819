"""From a model and two sets of files to the scores of each image and how well they tell the sets apart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from dualscore.detection.auroc import CONFIDENCE, Area, area, numbered
from dualscore.detection.detection_report import tell, write_rows
from dualscore.detection.measure import Measured, measure, reference_half
from dualscore.detection.picture import draw
from dualscore.detection.scores import SCORES, all_scores, flag
from dualscore.devices import allow_tf32, find_device
from dualscore.errors import ScoreError
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.scoring import files, tables
from dualscore.scoring.effective import DRAWS
from dualscore.scoring.photograph_means import Counted, photograph_of
from dualscore.scoring.size import normalized, wanted_size
from dualscore.scoring.stream import Problems, check_level, progress_bar, usable
from dualscore.terminal.hints import option

FEWEST = 20
"""Images at least in the reference, in the rest of --in, and in --out."""
LEVELS = (50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Noise levels of the profile in dB: from below a grey level to noise as strong as the brightest contrast."""
SEED = 0


@dataclass(frozen=True)
class Options:
    """How to detect."""

    results: Path = Path("ood")
    """Folder for the results."""
    levels: tuple[float, ...] = LEVELS
    """Noise levels of the profile of effective dimensions, in dB."""
    resize: bool = False
    """Crop and resize images of other sizes."""
    normalize: bool = False
    """Estimate log Z on the first images where it is not known for their size."""
    batch_size: int = 128
    workers: int = 0
    """Processes that decode."""
    device: str = "cpu"


def detect(
    model_path: Path, inside: Sequence[Path], outside: Sequence[Path], options: Options, console: Console
) -> dict[str, Any]:
    """Measure how well a model's scores tell two sets of images apart: ood.csv, .json, .png and .pdf.

    Args:
        model_path: a checkpoint, or a run's folder, of which the best is taken.
        inside: files and folders of images like those the model was trained on, not among them.
        outside: files and folders of other images.
        options: how.
        console: for progress and the table.

    Returns:
        What ood.json holds.

    Raises:
        DualscoreError: one line for people; files that cannot be used are counted instead, unless too few
            are left.
    """
    checkpoint = locate(model_path)
    check_sides(inside, outside, options.results)
    model = load(checkpoint)
    allow_tf32(False)
    for level in options.levels:
        check_level(level, model.t_max)
    size = wanted_size(model, inside, options.results, resize=options.resize, normalize=options.normalize)
    model = model.to(find_device(options.device))
    options.results.mkdir(parents=True, exist_ok=True)
    for ending in ("csv", "json", "png", "pdf"):  # those of another time
        (options.results / f"ood.{ending}").unlink(missing_ok=True)
    with tables.open_csv(options.results / "failures.csv", ["file", "reason"]) as failures:
        problems = {side: Problems(console, failures) for side in ("in", "out")}
        measured = {}
        for side, given in (("in", inside), ("out", outside)):
            model, measured[side] = _measure_side(side, model, given, size, options, problems[side])
    for problem in problems.values():
        problem.tell()
    both = _check_counts(measured, problems)
    chosen = reference_half(measured["in"].keys)
    parts = {"reference": measured["in"][chosen], "in": measured["in"][~chosen], "out": measured["out"]}
    scores_of = all_scores(parts["reference"])
    scores = {side: scores_of(part) for side, part in parts.items()}
    photographs = {
        side: list(map(photograph_of(given), parts[side].paths))
        for side, given in (("reference", inside), ("in", inside), ("out", outside))
    }
    counted = {side: Counted.of(parts[side].paths, names) for side, names in photographs.items()}
    drawn = numbered(photographs["in"]), numbered(photographs["out"])
    areas = {name: area(scores["in"][name], scores["out"][name], drawn) for name in SCORES}
    summary = {
        "model": model.provenance,
        "checkpoint": str(checkpoint),
        "image_shape": list(model.image_shape or ()),
        "log_normalizer": model.log_normalizer,
        "in": [str(path) for path in inside],
        "out": [str(path) for path in outside],
        "images": {side: len(part.paths) for side, part in parts.items()},
        "photographs": {side: found.total for side, found in counted.items()},
        "failed": {side: problem.count for side, problem in problems.items()},
        "on_both_sides": both,
        "settings": {
            "psnr": list(options.levels),
            "draws": DRAWS,
            "resize": options.resize,
            "confidence": CONFIDENCE,
            "seed": SEED,
        },
        "scores": {name: _figures(scores, name, areas[name]) for name in SCORES},
    }
    write_rows(
        options.results / "ood.csv", {side: (parts[side], scores[side]) for side in parts}, options.levels
    )
    draw(scores["in"], scores["out"], areas, summary, options.results)
    tell(summary, counted, options.results, console)
    return summary


def _measure_side(
    side: str,
    model: ImageModel,
    given: Sequence[Path],
    size: files.Size,
    options: Options,
    problems: Problems,
) -> tuple[ImageModel, Measured]:
    """The figures of all images of a side, and the model, log Z estimated if need be."""
    images = files.ImageFiles(given, options.results, size, options.batch_size)
    chunks = usable(iter(files.load(images, options.workers)), problems)
    if (first := next(chunks, None)) is None:
        raise ScoreError(f"{flag(side)}: no image could be measured: {problems.first}")
    model = normalized(model, first.images, size)
    with progress_bar(problems.console) as progress:
        advance = partial(progress.advance, progress.add_task(f"{flag(side)}: measured", total=None))
        return model, measure(model, chain([first], chunks), options.levels, problems, advance)


def _figures(scores: dict[str, dict[str, Tensor]], name: str, found: Area) -> dict[str, float | None]:
    medians = {f"median_{side}": float(scores[side][name].median()) for side in ("in", "out")}
    return asdict(found) | medians


def check_sides(inside: Sequence[Path], outside: Sequence[Path], results: Path) -> str:
    """Refuse, before anything is loaded, names of nothing, folders on both sides, and too few files."""
    files.check_given(inside, results)
    files.check_given(outside, results, results_hint())
    for path in inside:
        for other in outside:
            one, two = path.resolve(), other.resolve()
            if one.is_relative_to(two) or two.is_relative_to(one):
                raise ScoreError(f"{path} of {flag('in')} and {other} of {flag('out')} hold the same files")
    for side, given, wanted in (("in", inside, 2 * FEWEST), ("out", outside, FEWEST)):
        count = len(list(islice(files.find(given, results), wanted)))
        if count < wanted:
            raise ScoreError(f"{flag(side)} {given[0]}: {_too_few(count, wanted, side)}")
    return "nothing is on both, and there are enough"


def results_hint() -> str:
    """What to say where there are no other images: in other commands the same word is where results go."""
    return f"; {flag('out')} are the other images, {option('--results', 'RESULTS=…')} is where results go"


def _too_few(count: int, wanted: int, side: str) -> str:
    use = ", half of them to compare with" if side == "in" else ""
    return f"{count} images, and {wanted} are needed{use}"


def _check_counts(measured: dict[str, Measured], problems: dict[str, Problems]) -> int:
    """Refuse too few different images; returns how many of --out are in --in too."""
    keys = {side: set(found.keys) for side, found in measured.items()}
    for side, wanted in (("in", 2 * FEWEST), ("out", FEWEST)):
        if len(keys[side]) < wanted:
            left_out = (
                f"; {problems[side].count} left out: {problems[side].first}" if problems[side].count else ""
            )
            counted = _too_few(len(keys[side]), wanted, side).replace("images", "different images", 1)
            raise ScoreError(f"{flag(side)}: {counted}{left_out}")
    both = sum(key in keys["in"] for key in measured["out"].keys)
    if both == len(measured["out"].keys):
        raise ScoreError(
            f"every image of {flag('out')} is in {flag('in')} too: there is nothing to tell apart"
        )
    return both
