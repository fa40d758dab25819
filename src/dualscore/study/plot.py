"""A study's plots."""

import statistics
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from dualscore.study.plan import PAPER, Study
from dualscore.study.result import Result, paired


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
    for row, label in enumerate(("certified bound, bits/dim", "paper's protocol, bits/dim")):
        axes[row, 0].set_ylabel(label)
        axes[row, 0].set_yscale("log")
        axes[row, 0].yaxis.set_major_formatter(ScalarFormatter())
        axes[row, 0].yaxis.set_minor_formatter(ScalarFormatter())
    axes[1, 0].set_xlabel("seconds of training")
    axes[1, 1].set_xlabel("steps")
    if results:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(study.purpose, fontsize=9)
    return figure


def plot_differences(study: Study, results: Sequence[Result]) -> Figure:
    """Each variant's final figures less those of the first one: means and standard errors over seeds."""
    first = study.variants[0].name
    differences = {
        v.name: {e: found for e in ("bound", "dequantized") if (found := paired(results, first, v.name, e))}
        for v in study.variants[1:]
    }
    shown = {name: d for name, d in differences.items() if d}
    order = sorted(shown, key=lambda name: statistics.fmean(shown[name].get("bound", [0.0])))
    figure, axes = plt.subplots(figsize=(6.0, 1.2 + 0.22 * len(order)), layout="constrained")
    for estimate, color, marker in (("bound", "tab:blue", "o"), ("dequantized", "tab:orange", "s")):
        places = [place for place, name in enumerate(order) if estimate in shown[name]]
        values = [shown[order[place]][estimate] for place in places]
        errors = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
        axes.errorbar([statistics.fmean(v) for v in values], places, xerr=errors, color=color, fmt=marker,
                      ms=4, lw=1.2, label="certified bound" if estimate == "bound" else estimate)  # fmt: skip
    axes.axvline(0.0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=0.1, linscale=2.0)
    ticks = [-0.1, -0.05, 0.0, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel(f"bits/dim above {first}, mean and standard error over seeds")
    axes.legend(loc="lower right")
    axes.set_title(study.purpose, fontsize=9)
    return figure
