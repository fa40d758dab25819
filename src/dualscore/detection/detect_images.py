"""`dualscore ood`: from a model and two sets of files to how well scores tell the sets apart."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dualscore.detection.auroc import CONFIDENCE, area, numbered
from dualscore.detection.detection_report import draw, tell, write_rows
from dualscore.detection.scores import SCORES, Measured, all_scores, flag, reference_half
from dualscore.devices import allow_tf32, find_device
from dualscore.errors import ScoreError
from dualscore.images import to_pixels, to_stored
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.noise import variance_at_psnr
from dualscore.scoring import score_files
from dualscore.scoring.image_files import Problems, Size, StreamOptions, check_given, find, progress_bar
from dualscore.scoring.photograph_means import Counted, photograph_of
from dualscore.scoring.scorer import DRAWS, NOT_FINITE, check_level, effective_dimension, start, wanted_size

FEWEST = 20
"""Images at least in the reference, in the rest of --in, and in --out."""
WANTED = {"in": 2 * FEWEST, "out": FEWEST}
LEVELS = (50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Noise levels of the profile in dB: from below a grey level to noise as strong as the brightest contrast."""


@dataclass(frozen=True)
class DetectOptions(StreamOptions):
    """How to detect."""

    results: Path = Path("ood")
    """Folder for the results."""
    levels: tuple[float, ...] = LEVELS
    """Noise levels of the profile of effective dimensions, in dB."""


def detect(
    model_path: Path,
    inside: Sequence[Path],
    outside: Sequence[Path],
    options: DetectOptions,
    console: Console,
) -> dict[str, Any]:
    """Measure how well a model's scores tell two sets of image files apart; write ood.csv, .json, .png, .pdf.

    `inside` are images like the training images, but not among them; `outside` are others. Returns what
    ood.json holds. Unusable files are counted; a DualscoreError if too few are left.
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
    with score_files.open_csv(options.results / "failures.csv", ["file", "reason"]) as failures:
        problems = {side: Problems(console, failures) for side in WANTED}
        measured = {}
        for side, given in (("in", inside), ("out", outside)):
            model, measured[side] = _measure(side, model, given, size, options, problems[side])
    for problem in problems.values():
        problem.tell()
    both = _check_counts(measured, problems)
    chosen = reference_half(measured["in"].keys)
    parts = {"reference": measured["in"][chosen], "in": measured["in"][~chosen], "out": measured["out"]}
    scores_of = all_scores(parts["reference"])
    scores = {side: scores_of(part) for side, part in parts.items()}
    photographs = {
        side: list(map(photograph_of(outside if side == "out" else inside), part.paths))
        for side, part in parts.items()
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
            "seed": 0,
        },
        "scores": {
            name: asdict(areas[name])
            | {f"median_{side}": float(scores[side][name].median()) for side in WANTED}
            for name in SCORES
        },
    }
    rows = {side: (parts[side], scores[side]) for side in parts}
    write_rows(options.results / "ood.csv", rows, options.levels)
    draw(scores["in"], scores["out"], areas, summary, options.results)
    tell(summary, counted, options.results, console)
    return summary


def _measure(
    side: str,
    model: ImageModel,
    given: Sequence[Path],
    size: Size,
    options: DetectOptions,
    problems: Problems,
) -> tuple[ImageModel, Measured]:
    """Probabilities and profiles of all images of a side, and the model, log Z estimated if need be."""
    failure = f"{flag(side)}: no image could be measured"
    model, chunks = start(model, given, options.results, size, options, problems, failure)
    assert model.image_shape is not None
    variances = [variance_at_psnr(level) for level in options.levels]
    bits, profiles = [], []
    paths: list[str] = []
    keys: list[str] = []
    with progress_bar(problems.console) as progress:
        task = progress.add_task(f"{flag(side)}: measured", total=None)
        for chunk in chunks:
            clean = to_pixels(chunk.images, model.image_shape[0])
            batch_bits = model.bits_per_dim(clean, len(clean)).double().cpu()
            profile = effective_dimension(model, clean, variances)[:, :, 0]
            sound = batch_bits.isfinite() & profile.log().isfinite().all(dim=1)
            for image, path, kept in zip(to_stored(clean), chunk.paths, sound.tolist(), strict=True):
                if kept:
                    paths.append(path)
                    keys.append(hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest())
                else:
                    problems.add([(path, NOT_FINITE)])
            bits.append(batch_bits[sound])
            profiles.append(profile[sound])
            progress.advance(task, len(chunk.paths))
    return model, Measured(torch.cat(bits), torch.cat(profiles), paths, keys)


def check_sides(inside: Sequence[Path], outside: Sequence[Path], results: Path) -> str:
    """Refuse, before anything is loaded, missing files, folders on both sides, and too few files."""
    check_given(inside, results)
    check_given(outside, results, results_hint())
    for path in inside:
        for other in outside:
            one, two = path.resolve(), other.resolve()
            if one.is_relative_to(two) or two.is_relative_to(one):
                raise ScoreError(f"{path} of {flag('in')} and {other} of {flag('out')} hold the same files")
    for side, given in (("in", inside), ("out", outside)):
        count = len(list(islice(find(given, results), WANTED[side])))
        if count < WANTED[side]:
            raise ScoreError(f"{flag(side)} {given[0]}: {_too_few(count, side)}")
    return "nothing is on both, and there are enough"


def results_hint() -> str:
    """What to say where the other images are missing: in other commands --out is where results go."""
    return f"; {flag('out')} are the other images, --results is where results go"


def _too_few(count: int, side: str, images: str = "images") -> str:
    use = ", half of them to compare with" if side == "in" else ""
    return f"{count} {images}, and {WANTED[side]} are needed{use}"


def _check_counts(measured: dict[str, Measured], problems: dict[str, Problems]) -> int:
    """Refuse too few different images; returns how many of --out are in --in too."""
    keys = {side: set(found.keys) for side, found in measured.items()}
    for side, problem in problems.items():
        if len(keys[side]) < WANTED[side]:
            left_out = f"; {problem.count} left out: {problem.first}" if problem.count else ""
            counted = _too_few(len(keys[side]), side, "different images")
            raise ScoreError(f"{flag(side)}: {counted}{left_out}")
    both = sum(key in keys["in"] for key in measured["out"].keys)
    if both == len(measured["out"].keys):
        raise ScoreError(
            f"every image of {flag('out')} is in {flag('in')} too: there is nothing to tell apart"
        )
    return both
