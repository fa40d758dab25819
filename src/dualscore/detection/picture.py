"""ROC curves and histograms of the scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from torch import Tensor

from dualscore.detection.auroc import Area, curve
from dualscore.detection.scores import SCORES
from dualscore.figures import page

COLOURS = {"log_p": page.TRUTH, "typicality": "#1b9e77", "profile": "#7b4fa3"}
UNITS = {
    "log_p": "bits/dim",
    "typicality": "−ln tail probability",
    "profile": "distance / standard deviation",
}
BINS = 40


def draw(
    inside: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    areas: Mapping[str, Area],
    summary: dict[str, Any],
    results: Path,
) -> list[Path]:
    """Draw ood.pdf and ood.png, and write the summary beside them as ood.json.

    Args:
        inside: scores of the images of --in that are not the reference, by name.
        outside: scores of those of --out.
        areas: AUROC of each score.
        summary: plain values.
        results: folder.

    Returns:
        The files.
    """
    with page.style():
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
        return page.write(figure, summary, results, "ood")


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
