"""`dualscore ood`: from a model and two sets of files to how well scores tell the sets apart."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import compress, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from rich.console import Console, RenderableType
from torch import Tensor

from dualscore.devices import to_measure
from dualscore.errors import ScoreError
from dualscore.figures import page
from dualscore.images import to_pixels, to_stored
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.noise import variance_at_psnr
from dualscore.scoring.image_files import ImageFiles, Photographs, Problems, check_given, find, read_batches
from dualscore.scoring.ood_scores import (
    CONFIDENCE,
    SCORES,
    Area,
    area,
    curve,
    profile_distance,
    reference_half,
    typicality,
)
from dualscore.scoring.score_files import Outcome, append, open_csv, open_failures, right_aligned
from dualscore.scoring.scorer import DRAWS, check_level, effective_dimension, normalized, wanted_size

FEWEST = 20
"""Images at least in the reference, in the rest of --in, and in --out."""
WANTED = {"in": 2 * FEWEST, "out": FEWEST}
LEVELS = (50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Noise levels of the profile in dB: from below a grey level to noise as strong as the brightest contrast."""
RESULTS_HINT = "--out are the other images, --results is where results go"
"""What to say where the other images are missing: in other commands --out is where results go."""
COLOURS = {"log_p": page.TRUTH, "typicality": "#1b9e77", "profile": "#7b4fa3"}
UNITS = {
    "log_p": "bits/dim", "typicality": "−ln tail probability", "profile": "distance / standard deviation"
}  # fmt: skip
BINS = 40


class Measured(NamedTuple):
    """What is measured of an image: a few numbers, so that sets may be large."""

    path: str
    key: str  # checksum of the pixels as the model saw them: equal for equal images
    bits: float  # bits/dim by the paper's protocol
    profile: list[float]  # effective dimension at each noise level, > 0


def detect(
    model_path: Path,
    inside: Sequence[Path],
    outside: Sequence[Path],
    results: Path,
    console: Console,
    *,
    levels: Sequence[float] = LEVELS,
    resize: bool = False,
    normalize: bool = False,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Measure how well a model's scores tell two sets of image files apart; write ood.csv, .json, .png, .pdf.

    `inside` are images like the training images, but not among them; `outside` are others. `levels` are the
    noise levels of the profile, in dB. Unusable files are counted; a DualscoreError if too few are left.
    """
    checkpoint, given = locate(model_path), {"in": inside, "out": outside}
    check_sides(inside, outside, results)
    model = load(checkpoint)
    for level in levels:
        check_level(level, model.t_max)
    size = wanted_size(model, inside, results, resize=resize, normalize=normalize)
    model = to_measure(model, device)
    results.mkdir(parents=True, exist_ok=True)
    for ending in ("csv", "json", "png", "pdf"):  # those of another time
        (results / f"ood.{ending}").unlink(missing_ok=True)
    measured: dict[str, list[Measured]] = {side: [] for side in given}
    with open_failures(results) as failures:
        problems = {side: Problems(failures) for side in given}
        for side, paths in given.items():
            files = ImageFiles(paths, results, size, batch_size)
            with read_batches(files, workers, problems[side], console, f"--{side}: measured") as chunks:
                for chunk in chunks:
                    model = normalized(model, chunk.images, size)
                    clean = to_pixels(chunk.images, size.channels)
                    measured[side] += _measure(model, chunk.paths, clean, levels, problems[side])
    for problem in problems.values():
        problem.tell(console)
    both = _check_counts(measured, problems)
    chosen = reference_half([image.key for image in measured["in"]]).tolist()
    parts = {
        "reference": list(compress(measured["in"], chosen)),
        "in": [image for image, taken in zip(measured["in"], chosen, strict=True) if not taken],
        "out": measured["out"],
    }
    scores = _scores(parts)
    photographs = {
        part: Photographs(outside if part == "out" else inside, [image.path for image in images])
        for part, images in parts.items()
    }
    groups = torch.tensor(photographs["in"].groups), torch.tensor(photographs["out"].groups)
    areas = {name: area(scores["in"][name], scores["out"][name], groups) for name in SCORES}
    settings = {"psnr": list(levels), "draws": DRAWS, "resize": resize, "confidence": CONFIDENCE, "seed": 0}
    summary = {
        "model": model.provenance,
        "checkpoint": str(checkpoint),
        "image_shape": list(model.image_shape or ()),
        "log_normalizer": model.log_normalizer,
        "in": [str(path) for path in inside],
        "out": [str(path) for path in outside],
        "images": {side: len(part) for side, part in parts.items()},
        "photographs": {side: found.total for side, found in photographs.items()},
        "failed": {side: problem.count for side, problem in problems.items()},
        "on_both_sides": both,
        "settings": settings,
        "scores": {
            name: asdict(areas[name])
            | {f"median_{side}": float(scores[side][name].median()) for side in given}
            for name in SCORES
        },
    }
    names = ["bits_per_dim", *list(SCORES)[1:], *(f"d_eff_{level:g}dB" for level in levels)]
    with open_csv(results / "ood.csv", ["file", "side", *names]) as file:
        for side, part in parts.items():
            columns = zip(*(scores[side][name].tolist() for name in SCORES), strict=True)
            rows = zip(part, columns, strict=True)
            append(file, [[image.path, side, *found, *image.profile] for image, found in rows])
    with page.style():
        draw(scores["in"], scores["out"], areas, summary).write(results, "ood")
    return Outcome(summary, _report(summary, photographs, results))


def _measure(
    model: ImageModel, paths: Sequence[str], clean: Tensor, levels: Sequence[float], problems: Problems
) -> Iterator[Measured]:
    """Probabilities and profiles of a batch; images whose figures are not finite become problems."""
    bits = model.bits_per_dim(clean, len(clean)).double().cpu()
    profiles = effective_dimension(model, clean, [variance_at_psnr(level) for level in levels])[:, :, 0]
    finite = bits.isfinite() & profiles.log().isfinite().all(dim=1)
    problems.add_not_finite(compress(paths, (~finite).tolist()))
    stored = to_stored(clean).numpy()
    for j in finite.nonzero()[:, 0].tolist():
        key = hashlib.blake2b(stored[j].tobytes(), digest_size=16).hexdigest()
        yield Measured(paths[j], key, float(bits[j]), profiles[j].tolist())


def _scores(parts: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, Tensor]]:
    """Each part's scores of `SCORES` by name, float64, shape (n,)."""
    bits, profiles = {}, {}
    for part, images in parts.items():
        bits[part] = torch.tensor([image.bits for image in images], dtype=torch.float64)
        profiles[part] = torch.tensor([image.profile for image in images], dtype=torch.float64)
    return {
        part: {
            "log_p": bits[part],
            "typicality": typicality(bits[part], bits["reference"]),
            "profile": profile_distance(profiles[part], profiles["reference"]),
        }
        for part in parts
    }


def check_sides(inside: Sequence[Path], outside: Sequence[Path], results: Path) -> str:
    """Refuse, before anything is loaded, missing files, folders on both sides, and too few files."""
    check_given(inside, results)
    check_given(outside, results, RESULTS_HINT)
    for path, other in product(inside, outside):
        one, two = path.resolve(), other.resolve()
        if one.is_relative_to(two) or two.is_relative_to(one):
            raise ScoreError(f"{path} of --in and {other} of --out hold the same files")
    for side, given in (("in", inside), ("out", outside)):
        count = len(list(islice(find(given, results), WANTED[side])))
        if count < WANTED[side]:
            raise ScoreError(f"--{side} {given[0]}: {_too_few(count, side)}")
    return "nothing is on both, and there are enough"


def _too_few(count: int, side: str, images: str = "images") -> str:
    use = ", half of them to compare with" if side == "in" else ""
    return f"{count} {images}, and {WANTED[side]} are needed{use}"


def _check_counts(measured: Mapping[str, Sequence[Measured]], problems: Mapping[str, Problems]) -> int:
    """Refuse too few different images; returns how many of --out are in --in too."""
    keys = {side: [image.key for image in found] for side, found in measured.items()}
    for side, problem in problems.items():
        different = len(set(keys[side]))
        if different < WANTED[side]:
            left_out = f"; {problem.count} left out: {problem.first}" if problem.count else ""
            raise ScoreError(f"--{side}: {_too_few(different, side, 'different images')}{left_out}")
    known = set(keys["in"])
    both = sum(key in known for key in keys["out"])
    if both == len(keys["out"]):
        raise ScoreError("every image of --out is in --in too: there is nothing to tell apart")
    return both


def _report(
    summary: Mapping[str, Any], photographs: Mapping[str, Photographs], results: Path
) -> list[RenderableType]:
    """Each score's medians on either side and its AUROC, and what was compared with what."""
    table = right_aligned("score", "median, in", "median, out", "AUROC", "95 % interval")
    for name, label in SCORES.items():
        found = summary["scores"][name]
        cells = (f"{found[key]:.3f}" for key in ("median_in", "median_out", "auroc"))
        known = found["low"] is not None
        interval = f"{found['low']:.3f} to {found['high']:.3f}" if known else "one photograph: no error"
        table.add_row(label, *cells, interval)
    images, failed = summary["images"], sum(summary["failed"].values())
    left_out = f"; {failed:,} left out, see {results / 'failures.csv'}" if failed else ""
    over = f"{photographs['in']} of --in, {photographs['out']} of --out"
    fewest = min(summary["photographs"]["in"], summary["photographs"]["out"])
    report: list[RenderableType] = [
        table,
        f"{images['in']:,} images of --in against {images['out']:,} of --out; "
        f"{images['reference']:,} others of --in are the reference{left_out}",
        f"no intervals: {over}" if fewest == 1 else f"intervals are over {over}",
    ]
    if both := summary["on_both_sides"]:
        report.append(f"{both:,} of --out are in --in too: no score can tell them apart")
    if fewest > 1 and any(found["auroc"] in (0.0, 1.0) for found in summary["scores"].values()):
        report.append(
            "where no image overlaps the interval is one point: it does not say how rare overlaps are"
        )
    return [*report, f"written to {results}: ood.csv, ood.json, failures.csv, ood.png, ood.pdf"]


def draw(
    inside: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    areas: Mapping[str, Area],
    summary: dict[str, Any],
) -> page.Drawn:
    """The ROC curves and histograms of each side's scores by name, with the summary."""
    figure, axes = page.panels(1 + len(SCORES))
    axes[0].plot([0, 1], [0, 1], color=page.DATA, linestyle="--")
    for name, label in SCORES.items():
        axes[0].plot(*curve(inside[name], outside[name]), color=COLOURS[name], label=label)
    axes[0].legend(loc="best", fontsize="small", handlelength=1.0)
    axes[0].set(xlabel="false alarms", ylabel="detected", title="ROC", aspect="equal")
    for axis, (name, label) in zip(axes[1:], SCORES.items(), strict=True):
        _histogram(axis, inside[name], outside[name], log=name == "profile")
        axis.set(xlabel=UNITS[name], yticks=[])
        axis.set_title(f"{label}: AUROC {areas[name].auroc:.3f}", color=COLOURS[name])
    axes[1].set(ylabel="share of images")
    axes[1].legend()
    return page.Drawn(figure, summary)


def _histogram(axis: Axes, inside: Tensor, outside: Tensor, log: bool) -> None:
    sides = {"in": inside.numpy(), "out": outside.numpy()}
    both = np.concatenate(list(sides.values()))
    low, high = float(both.min()), float(both.max())
    if log and low > 0.0:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        edges = np.geomspace(low, max(high, 1.001 * low), BINS + 1)
    else:
        # One very strange image must not squeeze all others into one bar: the outer bars hold what is beyond.
        least, most = float(inside.min()), float(inside.max())
        room = max(0.5 * (most - least), 1e-3)
        edges = np.linspace(max(low, least - room), min(max(high, most + 1e-3), most + room), BINS + 1)
    for (name, values), colour in zip(sides.items(), (page.DUAL, page.SINGLE), strict=True):
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        axis.stairs(counts / len(values), edges, fill=True, color=colour, alpha=0.35)
        axis.stairs(counts / len(values), edges, color=colour, label=name)
