"""Table 1, denoising at each noise level, and table 2, likelihoods, each beside what was published."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dualscore.dashboard import published
from dualscore.errors import FigureError
from dualscore.evaluation import evaluate, is_complete
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.files.typed_json import parse_json, read_json
from dualscore.measuring.estimators import kind, label
from dualscore.measuring.row_figures import estimate_of, level_figures
from dualscore.measuring.subject import KINDS, LEVELS, Images, Rows, Stage, Subject
from dualscore.noise import corrupt, in_decibels, psnr, variance_at_psnr


def draw_denoising(trained: Trained) -> page.Drawn:
    """Table 1, of a run's validation images.

    Beside the run stand the newest score network of the same images among its neighbours, if there is one,
    and what the training set's stationary Gaussian denoises to (Wiener's filter).
    """
    session, variances = trained.session, trained.session.blank().levels
    measured = level_figures(session.run(trained.stages["noise_levels"]), variances, trained.dimension)
    linear = session.run(gaussian_denoising(variances, session.reported, trained.extent.subset))
    errors = linear["squared_error"].mean(dim=0).tolist()
    release, images = session.datamodule.release, measured[0].images
    name = f"{trained.config.name}, {'energy' if session.subject.is_energy else 'score network'}"
    columns = {
        "best Gaussian": {t: psnr(error) for t, error in zip(variances, errors, strict=True)},
        name: {level.noise_variance: level.psnr_out for level in measured},
    }
    if session.subject.is_energy:
        columns |= _score_network(trained, images)
    if session.datamodule.dataset == published.IMAGENET64 and trained.session.image_shape[0] == 3:
        levels = [variance_at_psnr(decibels) for decibels in published.PSNR_IN]
        columns["published, score network"] = dict(zip(levels, published.SCORE_NETWORK, strict=True))
        columns["published, energy"] = dict(zip(levels, published.ENERGY_NETWORK, strict=True))
    outside = [t for t in variances if not session.subject.inside(t)]
    table = [["input PSNR, dB", *columns]] + [
        [in_decibels(t) + " *" * (t in outside), *(_nearest(column, t) for column in columns.values())]
        for t in sorted(variances)
    ]
    high, low = map(psnr, session.subject.t_range)
    note = f"* outside the noise levels of training, {low:.0f} to {high:.0f} dB" if outside else ""
    title = f"Denoised PSNR in dB, {images:,} {session.kind} images · {release}"
    shown = {name: {f"{psnr(t):g}": value for t, value in found.items()} for name, found in columns.items()}
    numbers = {"unit": "dB", "images": images, "release": release, "columns": shown}
    return page.table(table, title, note, numbers)


def gaussian_denoising(variances: list[float], split: str, count: int) -> Stage:
    """The mean (x̂ − x)² of each image and noise level that the training set's Gaussian leaves."""
    settings = {"variances": variances, "draw": LEVELS}  # the network's own noise
    return Stage("gaussian_denoising", split, count, _squared_errors, settings)


def _squared_errors(subject: Subject, images: Images, variances: list[float], draw: int) -> Rows:
    noise, clean = images.noise(subject, draw), images.as_trained(subject)
    errors: list[Tensor] = []
    for t in map(images.constant, variances):
        denoised = subject.prior.denoise(corrupt(clean, noise, t), t)
        errors.append((denoised - clean).double().square().mean(dim=(1, 2, 3)))
    return {"squared_error": torch.stack(errors, dim=1)}


def _nearest(column: dict[float, float], variance: float) -> str:
    found = [value for t, value in column.items() if abs(psnr(t) - psnr(variance)) < 0.01]
    return f"{found[0]:.2f}" if found else ""


def _score_network(trained: Trained, images: int) -> dict[str, dict[float, float]]:
    """The column of the newest denoiser among the runs beside this one, measured on the same images."""
    wanted = trained.session.datamodule.release, list(trained.session.image_shape), images, None
    reports = sorted(trained.folder.parent.glob("*/evaluation.json"), key=lambda p: -p.stat().st_mtime)
    for path in reports:
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            report = parse_json(path.read_text(encoding="utf-8"))
            levels, release = report["noise_levels"], report["dataset"]["release"]
            found = release, report["image_shape"], levels[0]["images"], levels[0]["time_loss"]
            if found == wanted and "paper" not in report["bits_per_dim"]:
                column = {level["noise_variance"]: level["psnr_out"] for level in levels}
                return {f"{report['experiment']}, score network": column}
    return {}


def draw_likelihoods(trained: Trained) -> page.Drawn:
    """Table 2, of a run that is evaluated if that was not done."""
    path = trained.folder / "evaluation.json"
    report = read_json(path) if is_complete(path, trained.checkpoint) else {}
    if "yardsticks" not in report:  # not evaluated, or by an earlier version: what it kept is read again
        report = evaluate(trained.config, trained.checkpoint, path, trained.console)
    try:
        return _likelihoods(report, trained.config.name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FigureError(
            f"{path}: is not what this version writes ({error!r:.80}); delete it to evaluate anew"
        ) from error


def _likelihoods(report: dict[str, Any], name: str) -> page.Drawn:
    """Table 2 of an evaluation's report."""
    dataset, yardsticks = report["dataset"], report["yardsticks"]
    gray = ", gray" if dataset["colour"] == "gray" else ""
    data = {
        published.IMAGENET64: f"ImageNet64 new{gray}",
        "imagenet64_png": f"ImageNet64 old{gray}",
    }.get(dataset["name"], f"{dataset['name']} {'×'.join(map(str, report['image_shape']))}")

    def row(model: str, figure: dict[str, Any], of_kind: str, bits: str = "") -> list[str]:
        return [model, bits or str(estimate_of(figure)), data, of_kind, f"{figure['images']:,}"]

    table = [["model", "bits/dim", "data", "kind", "images"]]
    table += [row(f"{name}, {label(e)}", figure, kind(e)) for e, figure in report["bits_per_dim"].items()]
    if (truth := report.get("truth")) is not None:
        table.append(row("truth", truth, "exact"))
    for yardstick in yardsticks.values():
        if yardstick["value"] is not None:  # a codec may be missing, or a covariance too large
            without_error = f"{yardstick['value']:.3f}" if yardstick["stderr"] is None else ""
            table.append(row(yardstick["label"], yardstick, yardstick["kind"], without_error))
    table += [
        [f"{p.model} (published)", f"{p.bits_per_dim:.2f}", f"ImageNet64 {p.release}", p.kind, ""]
        for p in published.LIKELIHOODS
    ]
    note = (
        "ImageNet64 old (PNGs, no anti-aliasing), ImageNet64 new (Chrabaszcz et al.) and any other data "
        "cannot be compared with one another; new?: unclear which, probably the new one.\n"
        f"{name}: {report['verdict']}"
    )
    numbers = {
        "experiment": name,
        "dataset": dataset,
        "bits_per_dim": report["bits_per_dim"],
        "train": report.get("train"),
        "yardsticks": yardsticks,
        "verdict": report["verdict"],
        "published": [entry._asdict() for entry in published.LIKELIHOODS],
    }
    return page.table(table, f"Likelihoods of {KINDS[dataset['split']]} images", note, numbers)
