"""Table 1: denoising at each noise level, by an energy, a score network and the best Gaussian."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualscore.evaluation import evaluation_stages
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.likelihood import published
from dualscore.measuring.row_figures import level_figures
from dualscore.measuring.subject import LEVELS, Images, Rows, Stage, Subject
from dualscore.noise import corrupt, in_decibels, psnr


def draw_denoising(trained: Trained, out: Path) -> list[Path]:
    """Write table 1 of a run's validation images.

    Beside the run stands the newest score network of the same images among its neighbours, if there is
    one, and what the training set's stationary Gaussian denoises to (Wiener's filter).

    Args:
        trained: the run.
        out: folder that the files are written to.

    Returns:
        The files written.
    """
    session, variances = trained.session, evaluation_stages.levels(trained.config.evaluate)
    measured = level_figures(session.run(trained.stages["noise_levels"]), variances, trained.dimension)
    linear = session.run(gaussian_denoising(variances, session.reported, trained.extent.subset))
    name = f"{trained.config.name}, {'energy' if trained.is_energy else 'score network'}"
    columns: dict[str, dict[float, float]] = {
        "best Gaussian": {
            t: psnr(float(value))
            for t, value in zip(variances, linear["squared_error"].mean(dim=0), strict=True)
        },
        name: {level.noise_variance: level.psnr_out for level in measured},
    }
    if trained.is_energy and (reference := _score_network(trained, measured[0].images)) is not None:
        columns[reference[0]] = reference[1]
    if trained.session.datamodule.dataset == published.IMAGENET64 and trained.opened.image_shape[0] == 3:
        for label, values in (
            ("published, score network", published.SCORE_NETWORK),
            ("published, energy", published.ENERGY_NETWORK),
        ):
            columns[label] = {
                10.0 ** (-decibels / 10.0): value
                for decibels, value in zip(published.PSNR_IN, values, strict=True)
            }
    header = ["input PSNR, dB", *columns]
    t_min, t_max = session.subject.t_range
    inside = {t: session.subject.inside(t) for t in variances}
    rows = [
        [
            f"{in_decibels(t)}{'' if inside[t] else ' *'}",
            *(_nearest(column, t) for column in columns.values()),
        ]
        for t in sorted(variances)
    ]
    low, high = psnr(t_max), psnr(t_min)
    note = (
        "" if all(inside.values()) else f"* outside the noise levels of training, {low:.0f} to {high:.0f} dB"
    )
    release, images = session.datamodule.release, measured[0].images
    with page.style():
        figure = page.table(
            header, rows, f"Denoised PSNR in dB, {images:,} {session.kind} images · {release}", note
        )
        numbers: dict[str, Any] = {
            "unit": "dB",
            "images": images,
            "release": release,
            "columns": {
                label: {f"{psnr(t):g}": value for t, value in c.items()} for label, c in columns.items()
            },
        }
        return page.write(figure, numbers, out, "table1", [header, *rows])


def gaussian_denoising(variances: list[float], split: str, count: int) -> Stage:
    """What the training set's Gaussian leaves of the noise: mean (x̂ − x)² of each image and level.

    Args:
        variances: noise variances.
        split: whose images.
        count: how many.

    Returns:
        The stage.
    """

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
