"""`dualscore measure`: the likelihood of models on the same images, side by side."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from dualscore.bars import progress_bar
from dualscore.devices import find_device
from dualscore.errors import DualscoreError, ModelError
from dualscore.evaluation.store import kept_rows
from dualscore.files.aside import write_aside
from dualscore.files.plain_text import printable
from dualscore.likelihood import mean
from dualscore.measuring.any_denoiser import PSNR, DenoiserReport, measure
from dualscore.measuring.estimators import label as figure_label
from dualscore.measuring.estimators import limit_label
from dualscore.measuring.row_figures import estimate_of, plain
from dualscore.noise import in_decibels
from dualscore.scoring import score_files
from dualscore.scoring.image_files import Problems, Size, check_given
from dualscore.scoring.named_model import NamedModel, find_models, is_code, yours
from dualscore.scoring.score_files import Outcome
from dualscore.scoring.stored_pixels import Gathered, first_of, gather


@dataclass(frozen=True)
class MeasureOptions:
    """How models are measured."""

    count: int | None = None  # images at most, 2 or more
    label: int | None = None
    strata: int = 32
    ode_images: int = 0
    psnr: Sequence[float] = PSNR
    seed: int = 0
    resize: bool = False
    batch_size: int = 64
    workers: int = 0
    device: str = "cpu"


def measure_models(
    names: Sequence[str], given: Sequence[Path], out: Path, console: Console, options: MeasureOptions
) -> Outcome:
    """Measure each model on the same images with the same noise.

    Writes report.json and rows.csv; what was measured is kept in `rows` beside them, so that the same command
    goes on where it stopped. A DualscoreError is one line for people.
    """
    check_given(given, out)
    for option, number in (("--count", options.count), ("--ode-images", options.ode_images)):
        if number == 1:
            raise ModelError(f"{option} must be 2 or more: an error needs two images")
    device = find_device(options.device)
    for name in filter(is_code, names):
        console.print(f"runs your own code: {name}", soft_wrap=True)
    models = find_models(list(dict.fromkeys(names)), options.label, device)
    size = wanted(models, given, out, options.resize)
    out.mkdir(parents=True, exist_ok=True)
    for stale in (out / "report.json", out / "rows.csv", *out.glob(".pixels.*.tmp")):
        stale.unlink(missing_ok=True)
    stored = out / f".pixels.{os.getpid()}.tmp"
    with ExitStack() as stack:
        problems = Problems(stack.enter_context(score_files.open_failures(out)))
        stack.callback(stored.unlink, missing_ok=True)
        images = gather(given, stored, size, console, problems, count=options.count, workers=options.workers)
        problems.tell(console)
        reports = [_measure(model, images, out, console, options) for model in models]
    about: dict[str, Any] = {
        "images": len(images.names), "failed": problems.count, "image_size": list(images.rows.shape[2:]),
        "errors_over": images.over, "pixels_sha256": images.digest, "seed": options.seed,
    }  # fmt: skip
    about["models"] = [_figures(model, report) for model, report in zip(models, reports, strict=True)]
    about["differences"] = _differences(models, reports, images)
    _write_rows(out, models, reports, images)
    # Last: a report is that of a finished measurement.
    write_aside(out / "report.json", json.dumps(about, indent=1, allow_nan=False).encode())
    return Outcome(about, _told(about, out))


def wanted(models: Sequence[NamedModel], given: Sequence[Path], out: Path, resize: bool) -> Size:
    """The one size of the images: the models', which must agree, or that of the first image."""
    for what, values in (
        ("×".join, {m.name: tuple(map(str, m.size)) for m in models if m.size is not None}),
        (lambda channels: f"{channels[0]} channels", {m.name: (str(m.channels),) for m in models}),
    ):  # fmt: skip
        if len(set(values.values())) > 1:
            told = ", ".join(f"{name} is of {what(value)}" for name, value in values.items())
            raise ModelError(f"these models are of different images, so that nothing can be compared: {told}")
    known = next((model.size for model in models if model.size is not None), None)
    height, width = known or first_of(given, out)
    hint = ", the size of the model; --resize crops and resizes" if known else ", as the first"
    return Size(models[0].channels if models else 3, height, width, resize, hint)


def _measure(
    model: NamedModel, images: Gathered, out: Path, console: Console, options: MeasureOptions
) -> DenoiserReport:
    """One model's report, or a line on what is wrong with it."""
    seen = images.seen(model.channels, find_device(options.device))
    name = hashlib.sha256(model.name.encode()).hexdigest()[:12]
    kept = kept_rows(out / "rows" / name, model.digest)
    with progress_bar(console, "batches") as progress:

        def watch(batches: Iterator[int]) -> Iterator[int]:
            every = list(batches)
            task = progress.add_task(printable(model.name)[-14:], total=len(every))
            for number in every:
                yield number
                progress.advance(task)

        def run() -> DenoiserReport:
            return measure(
                model.denoiser, seen, photographs=images.photographs, t_range=model.t_range,
                prior=model.prior, psnr=options.psnr, strata=options.strata, seed=options.seed,
                ode_images=options.ode_images, batch_size=options.batch_size, kept=kept, watch=watch,
            )  # fmt: skip

        try:
            return yours(model.name.rpartition(":")[0] if is_code(model.name) else model.name, run)
        except DualscoreError as error:
            shape = "×".join(map(str, seen.shape[1:]))
            named = str(error).startswith(model.name)
            raise ModelError(
                f"{error}" if named else f"{model.name}, on images of {shape}: {error}"
            ) from error


def _figures(model: NamedModel, report: DenoiserReport) -> dict[str, Any]:
    """A model's part of report.json."""
    t0, t1 = report.measured.bound_range
    return {
        "model": model.name,
        "what": model.what,
        "dimension": report.measured.dimension,
        "noise_variances": list(report.measured.subject.t_range),
        "bound_between": [t0, t1],
        "bits_per_dim": report.bits_per_dim,
        "noise_levels": report.noise_levels,
        "asymmetry": [{"noise_variance": t, "share": share} for t, share in report.asymmetry],
        "checks": [
            {"check": c.name, "where": c.where, "word": c.word.value} | plain(c.gap) for c in report.checks
        ],
        "verdict": report.verdict,
    }


def _differences(
    models: Sequence[NamedModel], reports: Sequence[DenoiserReport], images: Gathered
) -> list[dict[str, Any]]:
    """Bounds of the other models less that of the first, image by image: far better known than either."""
    first = reports[0].images["bits_per_dim"]
    return [
        {"bound_of": model.name, "less_that_of": models[0].name, "images": len(first)}
        | plain(mean(report.images["bits_per_dim"] - first, images.photographs))
        for model, report in zip(models[1:], reports[1:], strict=True)
    ]


def _write_rows(
    out: Path, models: Sequence[NamedModel], reports: Sequence[DenoiserReport], images: Gathered
) -> None:
    """rows.csv: each image's own bound by each model; one image's own is a noisy figure."""
    columns = [report.images["bits_per_dim"].tolist() for report in reports]
    with score_files.open_csv(out / "rows.csv", ["file", "photograph", *(m.name for m in models)]) as file:
        score_files.append(file, zip(images.names, images.photographs.tolist(), *columns, strict=True))


def _told(about: dict[str, Any], out: Path) -> list[RenderableType]:
    """The table, differences, verdicts, and where everything is."""
    table = Table("bits/dim", *(escape(printable(m["model"])) for m in about["models"]))
    names = list(dict.fromkeys(name for m in about["models"] for name in m["bits_per_dim"]))
    for name in names:
        found = [m["bits_per_dim"].get(name) for m in about["models"]]
        table.add_row(figure_label(name), *("" if f is None else str(estimate_of(f)) for f in found))
        limits = [(f or {}).get("certificate", {}).get("value") for f in found]
        if any(limit is not None for limit in limits):
            shown = ("" if limit is None else f"{limit:.3f}" for limit in limits)
            table.add_row(limit_label(name), *shown)
    levels = [{x["noise_variance"]: x for x in m["noise_levels"]} for m in about["models"]]
    for t in sorted({t for each in levels for t in each}):
        shown = (f"{each[t]['psnr_out']:.2f} dB" if t in each else "" for each in levels)
        table.add_row(f"denoised, {in_decibels(t)} dB", *shown)
    lines: list[RenderableType] = [table]
    for gap in about["differences"]:
        error = "" if gap["stderr"] is None else f" ± {gap['stderr']:.3f}"
        lines.append(
            f"bound of {printable(gap['bound_of'])} less that of {printable(gap['less_that_of'])}, the same "
            f"images and noise: {gap['value']:+.3f}{error} bits/dim"
        )
    lines += [f"{printable(m['model'])}: {m['verdict']}" for m in about["models"]]
    lines.append(f"{about['images']:,} images; ± is over {about['errors_over']}")
    return [*lines, f"written to {out}: report.json, rows.csv, failures.csv"]
