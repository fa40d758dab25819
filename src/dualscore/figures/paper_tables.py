"""Table 1, denoising at each noise level, and table 2, likelihoods, each beside what was published."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualscore.dashboard import published
from dualscore.errors import FigureError
from dualscore.evaluation import evaluate, evaluation_stages, is_complete
from dualscore.evaluation.session import KINDS
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.measuring.estimators import kind, label
from dualscore.measuring.row_figures import estimate_of, level_figures
from dualscore.measuring.subject import LEVELS, Images, Rows, Stage, Subject
from dualscore.noise import corrupt, in_decibels, psnr, variance_at_psnr

HEADER = ["model", "bits/dim", "data", "kind", "images"]


def draw_denoising(trained: Trained, out: Path) -> list[Path]:
    """Write table 1 of a run's validation images.

    Beside the run stand the newest score network of the same images among its neighbours, if there is one,
    and what the training set's stationary Gaussian denoises to (Wiener's filter).
    """
    session, variances = trained.session, evaluation_stages.levels(trained.config.evaluate)
    measured = level_figures(session.run(trained.stages["noise_levels"]), variances, trained.dimension)
    linear = session.run(gaussian_denoising(variances, session.reported, trained.extent.subset))
    errors = linear["squared_error"].mean(dim=0).tolist()
    release, images = session.datamodule.release, measured[0].images
    name = f"{trained.config.name}, {'energy' if trained.is_energy else 'score network'}"
    columns = {
        "best Gaussian": {t: psnr(error) for t, error in zip(variances, errors, strict=True)},
        name: {level.noise_variance: level.psnr_out for level in measured},
    }
    if trained.is_energy and (reference := _score_network(trained, images)) is not None:
        columns[reference[0]] = reference[1]
    if session.datamodule.dataset == published.IMAGENET64 and trained.opened.image_shape[0] == 3:
        levels = [variance_at_psnr(decibels) for decibels in published.PSNR_IN]
        columns["published, score network"] = dict(zip(levels, published.SCORE_NETWORK, strict=True))
        columns["published, energy"] = dict(zip(levels, published.ENERGY_NETWORK, strict=True))
    header = ["input PSNR, dB", *columns]
    inside = {t: session.subject.inside(t) for t in variances}
    rows = [
        [in_decibels(t) + ("" if inside[t] else " *"), *(_nearest(column, t) for column in columns.values())]
        for t in sorted(variances)
    ]
    high, low = map(psnr, session.subject.t_range)
    outside = f"* outside the noise levels of training, {low:.0f} to {high:.0f} dB"
    title = f"Denoised PSNR in dB, {images:,} {session.kind} images · {release}"
    with page.style():
        figure = page.table(header, rows, title, "" if all(inside.values()) else outside)
        numbers: dict[str, Any] = {
            "unit": "dB",
            "images": images,
            "release": release,
            "columns": {
                name: {f"{psnr(t):g}": value for t, value in column.items()}
                for name, column in columns.items()
            },
        }
        return page.write(figure, numbers, out, "table1", [header, *rows])


def gaussian_denoising(variances: list[float], split: str, count: int) -> Stage:
    """The mean (x̂ − x)² of each image and noise level that the training set's Gaussian leaves."""

    def measure(subject: Subject, images: Images) -> Rows:
        noise = images.noise(subject, LEVELS)  # the network's own
        errors: list[Tensor] = []
        clean, prior = images.as_trained(subject), subject.prior
        for variance in variances:
            t = images.constant(variance)
            denoised = prior.denoise(corrupt(clean, noise, t), t)
            errors.append((denoised - clean).double().square().mean(dim=(1, 2, 3)))
        return {"squared_error": torch.stack(errors, dim=1)}

    return Stage("gaussian_denoising", split, count, measure, {"variances": variances, "draw": LEVELS})


def _nearest(column: dict[float, float], variance: float) -> str:
    found = [value for t, value in column.items() if abs(psnr(t) - psnr(variance)) < 0.01]
    return f"{found[0]:.2f}" if found else ""


def _score_network(trained: Trained, images: int) -> tuple[str, dict[float, float]] | None:
    """The newest denoiser's figures among the runs beside this one, measured on the same images."""
    mine = trained.opened
    candidates = sorted(trained.run.folder.parent.glob("*/evaluation.json"), key=lambda p: p.stat().st_mtime)
    for path in reversed(candidates):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            same = (
                report["dataset"]["release"] == mine.session.datamodule.release
                and report["image_shape"] == list(mine.image_shape)
                and report["noise_levels"][0]["images"] == images
                and "paper" not in report["bits_per_dim"]
                and report["noise_levels"][0]["time_loss"] is None
            )
            if same:
                levels = {level["noise_variance"]: level["psnr_out"] for level in report["noise_levels"]}
                return f"{report['experiment']}, score network", levels
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return None


def draw_likelihoods(trained: Trained, out: Path) -> list[Path]:
    """Write table 2 of a run, after evaluating it if that was not done."""
    path = trained.run.folder / "evaluation.json"
    report = json.loads(path.read_text(encoding="utf-8")) if is_complete(path, trained.checkpoint) else {}
    if "yardsticks" not in report:  # not evaluated, or by an earlier version: what it kept is read again
        report = evaluate(trained.config, trained.checkpoint, path)
    try:
        rows, note, numbers = _likelihoods(report, trained.config.name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FigureError(
            f"{path}: is not what this version writes ({error!r:.80}); delete it to evaluate anew"
        ) from error
    with page.style():
        figure = page.table(HEADER, rows, f"Likelihoods of {KINDS[report['dataset']['split']]} images", note)
        return page.write(figure, numbers, out, "table2", [HEADER, *rows])


def _likelihoods(report: dict[str, Any], name: str) -> tuple[list[list[str]], str, dict[str, Any]]:
    """The table's rows, the note below it, and the numbers, of an evaluation's report."""
    data, yardsticks = _data(report), report["yardsticks"]

    def row(model: str, figure: dict[str, Any], of_kind: str, bits: str = "") -> list[str]:
        return [model, bits or str(estimate_of(figure)), data, of_kind, f"{figure['images']:,}"]

    rows = [row(f"{name}, {label(e)}", figure, kind(e)) for e, figure in report["bits_per_dim"].items()]
    if (truth := report.get("truth")) is not None:
        rows.append(row("truth", truth, "exact"))
    for yardstick in yardsticks.values():
        if yardstick["value"] is not None:  # a codec may be missing, or a covariance too large
            without_error = f"{yardstick['value']:.3f}" if yardstick["stderr"] is None else ""
            rows.append(row(yardstick["label"], yardstick, yardstick["kind"], without_error))
    rows += [
        [f"{p.model} (published)", f"{p.bits_per_dim:.2f}", f"ImageNet64 {p.release}", p.kind, ""]
        for p in published.LIKELIHOODS
    ]
    note = (
        "ImageNet64 old (PNGs, no anti-aliasing), ImageNet64 new (Chrabaszcz et al.) and any other data "
        "cannot be compared with one another; new?: unclear which, probably the new one.\n"
        f"{name}: {report['verdict']}"
    )
    numbers: dict[str, Any] = {
        "experiment": name,
        "dataset": report["dataset"],
        "bits_per_dim": report["bits_per_dim"],
        "train": report.get("train"),
        "yardsticks": yardsticks,
        "verdict": report["verdict"],
        "published": [entry._asdict() for entry in published.LIKELIHOODS],
    }
    return rows, note, numbers


def _data(report: dict[str, Any]) -> str:
    dataset = report["dataset"]
    gray = ", gray" if dataset["colour"] == "gray" else ""
    if dataset["name"] == published.IMAGENET64:
        return f"ImageNet64 new{gray}"
    if dataset["name"] == "imagenet64_png":
        return f"ImageNet64 old{gray}"
    return f"{dataset['name']} {'×'.join(map(str, report['image_shape']))}"
