"""Figure 2: do two networks, trained on disjoint images, agree on log p?"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from dualscore.dashboard import published
from dualscore.errors import ConfigError, FigureError
from dualscore.evaluation.open_checkpoint import open_checkpoint
from dualscore.figures import page
from dualscore.figures.trained import Trained, open_run
from dualscore.likelihood import mean
from dualscore.measuring.row_figures import plain
from dualscore.measuring.subject import Rows, joined
from dualscore.runs.folder import Run, differences, flatten
from dualscore.settings.config import Half

SETS = {"A": "A's images", "B": "B's images", "held out": "held-out images"}
COLOURS = {"A": page.DUAL, "B": page.SINGLE, "held out": page.TRUTH}


Pair = tuple[Trained, Trained]
"""Two runs, A and B, of one experiment on disjoint training images."""


def _training_images(pair: Pair) -> int:
    """Training images of the smaller set."""
    return min(side.session.datamodule.counts["train"] for side in pair)


def draw_generalization(
    trained: Trained, other: Path | None, overrides: Sequence[str], out: Path
) -> list[Path]:
    """Draw figure 2: of a run and `other`, or of all pairs of its experiment's halves among its neighbours.

    Raises FigureError if the model is a denoiser, there is no pair, or the two cannot be compared.
    """
    trained.need_energy("figure 2")
    if other is not None:
        pairs = [(trained, _open_other(trained, other, overrides))]
    else:
        pairs = sorted(_pairs(trained, overrides), key=_training_images)
    if not pairs:
        folder = str(trained.run.folder)
        draws = f"dualscore figures {folder} --other …"
        raise FigureError(
            f"figure 2 needs two networks on disjoint images: {draws}, or a sweep over data.half "
            "(sweeps/generalization.yaml)"
        )
    measured = [_measure(pair) for pair in pairs]
    numbers: dict[str, Any] = {
        "unit": "dB/dim",
        "pairs": [found for found, _ in measured],
        "published": {
            str(n): dict(zip("AB", values, strict=True)) for n, values in published.GENERALIZATION.items()
        },
    }
    with page.style():
        shown = measured[-3:]
        figure, axes = page.panels(len(shown) + 1, legend=True)
        for axis, (found, points) in zip(axes, shown, strict=False):
            _scatter(axis, found, points)
        _against_size(axes[-1], numbers["pairs"])
        return page.write(figure, numbers, out, "figure2", credit=trained.credit)


def _open_other(trained: Trained, other: Path, overrides: Sequence[str]) -> Trained:
    """Open a second run; FigureError if it cannot be compared with the first."""
    second = open_run(other, overrides, trained.console)
    second.need_energy("figure 2")
    if second.opened.image_shape != trained.opened.image_shape:
        raise FigureError(
            f"{other}: its images are {second.opened.image_shape}, those of {trained.run.folder} "
            f"{trained.opened.image_shape}: their likelihoods cannot be compared"
        )
    if second.opened.digest == trained.opened.digest:
        raise FigureError(f"{other}: is the same network as {trained.run.folder}")
    if second.session.datamodule.identity == trained.session.datamodule.identity:
        raise FigureError(f"{other}: was trained on the same images as {trained.run.folder}")
    return second


def _pairs(trained: Trained, overrides: Sequence[str]) -> list[Pair]:
    """Pairs among the runs beside one: of its experiment, equal in all settings but the half."""
    halves: dict[str, dict[Path, dict[str, Any]]] = {"A": {}, "B": {}}
    for folder in sorted(trained.run.folder.parent.iterdir()):
        run = Run(folder)
        if not (run.best.is_file() and run.config_file.is_file()):
            continue
        with contextlib.suppress(ConfigError):
            config = run.read_config()
            flat = flatten(config)
            if flat.get("name") == trained.config.name and flat.get("data.half") in halves:
                halves[flat["data.half"]][folder] = config
    found = []
    for first, config in halves["A"].items():
        same = [f for f, c in halves["B"].items() if set(differences(config, c)) <= {"data.half", "name"}]
        if same:
            # The newest of several alike.
            newest = max(same, key=lambda folder: folder.stat().st_mtime)
            a, b = (open_run(f, overrides, trained.console) for f in (first, newest))
            assert (a.config.data.half, b.config.data.half) == (Half.A, Half.B)
            found.append((a, b))
    return found


def _measure(pair: Pair) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """Figures of a pair, and log p by A and by B of each image of each set."""
    points, sets = {}, {}
    for name, owner, split in (("A", pair[0], "train"), ("B", pair[1], "train"), ("held out", pair[0], "")):
        first, second = (_energies(side, owner, split) for side in pair)
        i, j = joined(first, second)
        a, b = pair[0].decibels(first["energy"][i]), pair[1].decibels(second["energy"][j])
        points[name] = a, b
        images = owner.session.datamodule
        photographs = images.photographs(split or images.reported, first["position"][i])
        difference = mean((a - b).abs(), photographs)
        sets[name] = {
            "images": len(a),
            "mean_absolute_difference": difference.value,
            "stderr": plain(difference)["stderr"],
            "mean_difference": float((a - b).mean()),
            "pearson": float(np.corrcoef(a.numpy(), b.numpy())[0, 1]),
            "spearman": float(stats.spearmanr(a.numpy(), b.numpy()).statistic),
            "sd_over_images": float(a.std()),
            "log_p_a": a.tolist(),
            "log_p_b": b.tolist(),
        }
    runs = {name: str(side.run.folder) for name, side in zip("ab", pair, strict=True)}
    return {"runs": runs, "training_images": _training_images(pair), "sets": sets}, points


def _energies(network: Trained, owner: Trained, split: str) -> Rows:
    """U(x, 0) by one network of a split of a run's images."""
    stage = owner.stages["train_paper" if split == "train" else "paper"]
    if network.run.folder == owner.run.folder:
        return network.session.run(stage)
    config = replace(network.config, data=owner.config.data, evaluate=owner.config.evaluate)
    folder = network.run.folder / "evaluation"
    return open_checkpoint(config, network.checkpoint, folder, network.console).session.run(stage)


def _scatter(axis: Any, found: dict[str, Any], points: dict[str, tuple[Tensor, Tensor]]) -> None:  # noqa: ANN401
    for name, (a, b) in points.items():
        difference = found["sets"][name]["mean_absolute_difference"]
        axis.scatter(
            a.numpy(), b.numpy(), s=3, lw=0, alpha=0.35, color=COLOURS[name], rasterized=True,
            label=f"{SETS[name]}: {difference:.2f}",
        )  # fmt: skip
    low, _ = axis.get_xlim()
    axis.axline((low, low), slope=1.0, color="gray", lw=0.6, zorder=0)
    axis.set(
        xlabel="log $p_A$, dB/dim", ylabel="log $p_B$, dB/dim", title=f"N = {found['training_images']:,}"
    )
    axis.legend(
        title="mean |log $p_A$ − log $p_B$|", markerscale=3, loc="lower right", fontsize=7, title_fontsize=7
    )


def _against_size(axis: Any, pairs: list[dict[str, Any]]) -> None:  # noqa: ANN401
    sizes = list(published.GENERALIZATION)
    for place, name in enumerate("AB"):
        axis.loglog(
            sizes, [published.GENERALIZATION[n][place] for n in sizes], color=COLOURS[name], lw=0.8, ls="--",
            marker=".", label=f"published, {SETS[name]}",
        )  # fmt: skip
    for name in SETS:
        axis.loglog(
            [pair["training_images"] for pair in pairs],
            [pair["sets"][name]["mean_absolute_difference"] for pair in pairs],
            color=COLOURS[name], marker="o", ms=4, label=f"ours, {SETS[name]}",
        )  # fmt: skip
    axis.set(xlabel="training images N of each network", ylabel="mean |log $p_A$ − log $p_B$|, dB/dim")
    axis.figure.legend(*axis.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
