"""What a detection leaves: a row an image, a table of the areas, ROC curves and histograms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dualscore.detection.auroc import Area, curve
from dualscore.detection.scores import SCORES, Measured, flag
from dualscore.figures import page
from dualscore.scoring import score_files
from dualscore.scoring.photograph_means import Counted
from dualscore.terminal import final

COLOURS = {"log_p": page.TRUTH, "typicality": "#1b9e77", "profile": "#7b4fa3"}
UNITS = {
    "log_p": "bits/dim",
    "typicality": "−ln tail probability",
    "profile": "distance / standard deviation",
}
BINS = 40


def write_rows(
    path: Path, parts: Mapping[str, tuple[Measured, Mapping[str, Tensor]]], levels: Sequence[float]
) -> None:
    """Write a CSV row an image; `parts` are the reference, the rest of --in, and --out, by those names."""
    names = ["bits_per_dim", *list(SCORES)[1:], *(f"d_eff_{level:g}dB" for level in levels)]
    with score_files.open_csv(path, ["file", "side", *names]) as file:
        for side, (measured, scores) in parts.items():
            numbers = [*(scores[name].tolist() for name in SCORES), *measured.profile.T.tolist()]
            rows = zip(measured.paths, *numbers, strict=True)
            score_files.append(file, [[name, side, *(f"{x:.7g}" for x in values)] for name, *values in rows])


def tell(summary: Mapping[str, Any], counted: Mapping[str, Counted], results: Path, console: Console) -> None:
    """Print each score's medians on either side and its AUROC, and what was compared with what."""
    table = Table("score", "median, in", "median, out", "AUROC", "95 % interval")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label in SCORES.items():
        found = summary["scores"][name]
        cells = (f"{found[key]:.3f}" for key in ("median_in", "median_out", "auroc"))
        known = found["low"] is not None
        interval = f"{found['low']:.3f} to {found['high']:.3f}" if known else "one photograph: no error"
        table.add_row(label, *cells, interval)
    final(console, table)
    images, failed = summary["images"], sum(summary["failed"].values())
    inside, outside = flag("in"), flag("out")
    left_out = f"; {failed:,} left out, see {results / 'failures.csv'}" if failed else ""
    over = f"{counted['in']} of {inside}, {counted['out']} of {outside}"
    fewest = min(counted["in"].total, counted["out"].total)
    lines = [
        f"{images['in']:,} images of {inside} against {images['out']:,} of {outside}; "
        f"{images['reference']:,} others of {inside} are the reference{left_out}",
        f"no intervals: {over}" if fewest == 1 else f"intervals are over {over}",
    ]
    if both := summary["on_both_sides"]:
        lines.append(f"{both:,} of {outside} are in {inside} too: no score can tell them apart")
    if any(found["low"] is not None and found["auroc"] in (0.0, 1.0) for found in summary["scores"].values()):
        lines.append(
            "where no image overlaps the interval is one point: it does not say how rare overlaps are"
        )
    lines.append(f"written to {results}: ood.csv, ood.json, failures.csv, ood.png, ood.pdf")
    for line in lines:
        final(console, line, soft_wrap=True)


def draw(
    inside: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    areas: Mapping[str, Area],
    summary: dict[str, Any],
    results: Path,
) -> list[Path]:
    """Draw ood.pdf and ood.png of each side's scores by name, and write the summary as ood.json."""
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
        return page.Drawn(figure, summary).write(results, "ood")


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
