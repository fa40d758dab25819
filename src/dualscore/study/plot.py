"""What one run of a study found, and the plots of all of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from dualscore.study.variants import PAPER, Study

LINEAR = 0.1
"""Bits/dim up to which differences are drawn on a linear scale."""


@dataclass(frozen=True)
class Result:
    """One run: bits/dim along it, and its final evaluation. Without figures where it diverged."""

    variant: str
    seed: int
    seconds_per_step: float
    steps: list[int]
    bound: list[float]
    paper: list[float]
    final: dict[str, float]
    """bits/dim by estimator, at the checkpoint with the lowest bound."""
    gap: float | None
    """Dequantized less bound, on the images of which both were measured."""
    verdict: str
    diverged: str


def paired(results: Sequence[Result], first: str, variant: str, estimate: str) -> list[float]:
    """A final figure of a variant less that of another, in bits/dim, for each seed that has both."""
    figures = {(r.variant, r.seed): r.final[estimate] for r in results if estimate in r.final}
    return [
        figure - figures[first, seed]
        for (name, seed), figure in figures.items()
        if name == variant and (first, seed) in figures
    ]


def standard_error(values: Sequence[float]) -> float:
    """Of a mean; 0 of one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def plot_curves(study: Study, results: Sequence[Result]) -> Figure:
    """Bound and paper's bits/dim against seconds and steps: means, bands from lowest to highest seed."""
    figure, axes = plt.subplots(2, 2, figsize=(7.4, 5.2), sharey="row", layout="constrained")
    colors = plt.get_cmap("tab20")
    for place, variant in enumerate(study.variants):
        mine = [r for r in results if r.variant == variant.name and r.steps]
        if not mine:
            continue
        shared = sorted(set.intersection(*(set(r.steps) for r in mine)))
        color = "black" if variant.name == PAPER else colors(place % 20)
        for row, name in enumerate(("bound", "paper")):
            curves = [dict(zip(r.steps, getattr(r, name), strict=True)) for r in mine]
            columns = [[curve[s] for curve in curves] for s in shared]
            for column, scale in enumerate((mine[0].seconds_per_step, 1.0)):
                x = [s * scale for s in shared]
                axes[row, column].plot(x, [statistics.fmean(c) for c in columns], color=color, lw=1.2,
                                       marker=".", ms=3, label=variant.name)  # fmt: skip
                axes[row, column].fill_between(x, [min(c) for c in columns], [max(c) for c in columns],
                                               color=color, alpha=0.15, lw=0)  # fmt: skip
    for axis, label in zip(axes[:, 0], ("bound, bits/dim", "paper's protocol, bits/dim"), strict=True):
        axis.set(ylabel=label, yscale="log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
    axes[1, 0].set_xlabel("seconds of training")
    axes[1, 1].set_xlabel("steps")
    if results:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(study.purpose, fontsize=9)
    return figure


def plot_differences(study: Study, results: Sequence[Result]) -> Figure:
    """Each variant's final figures less those of the first one, the largest of the bound on top."""
    first = study.variants[0].name
    shown: dict[str, dict[str, tuple[float, float]]] = {}
    for variant in study.variants[1:]:
        for estimate in ("bound", "dequantized"):
            if values := paired(results, first, variant.name, estimate):
                mean_and_error = statistics.fmean(values), standard_error(values)
                shown.setdefault(variant.name, {})[estimate] = mean_and_error
    order = sorted(shown, key=lambda name: shown[name].get("bound", (0.0, 0.0))[0])
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.22 * len(order)), layout="constrained")
    for estimate, color, marker in (("bound", "tab:blue", "o"), ("dequantized", "tab:orange", "s")):
        places = [place for place, name in enumerate(order) if estimate in shown[name]]
        found = [shown[order[place]][estimate] for place in places]
        axes.errorbar([mean for mean, _ in found], places, xerr=[error for _, error in found], color=color,
                      fmt=marker, ms=4, lw=1.2, label=estimate)  # fmt: skip
    axes.axvline(0.0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=2.0)
    means = [mean for one in shown.values() for mean, _ in one.values()]
    low, high = min([-LINEAR / 2, *means]), max([LINEAR, *means])
    axes.set_xlim(low - 0.05 if low > -LINEAR else 1.5 * low, 1.6 * high)
    # Where the scale is logarithmic, so that nobody takes distances there for those beside zero.
    axes.axvspan(LINEAR, 1.6 * high, color="0.94", lw=0, zorder=0)
    every = (-1.0, -0.1, -0.05, 0.0, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
    ticks = [tick for tick in every if axes.get_xlim()[0] < tick < 1.6 * high]
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel(f"bits/dim above {first}, mean and standard error over seeds\n(logarithmic in the gray)")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(study.purpose, fontsize=9)
    return figure
