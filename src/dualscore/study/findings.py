"""What a study found: curves out of the runs' logs, a table, a plot and the numbers."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualscore.figures.page import style
from dualscore.files.aside import write_aside
from dualscore.files.typed_json import read_json
from dualscore.runs.folder import Run
from dualscore.study.variants import PAPER, Study

ESTIMATES = ("bound", "paper", "dequantized")
GAP = "bound − dequantized"
"""A key of an evaluation's differences; reports before 0.2 have it among their checks."""
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


def _curve(run: Run, tag: str) -> dict[int, float]:
    """A logged figure by training step; of a step logged twice, the last value."""
    if not run.folder.exists():
        return {}
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    events.Reload()
    logged = events.Scalars(tag) if tag in events.Tags()["scalars"] else []
    return {event.step + 1: event.value for event in logged}


def read_result(run: Run, variant: str, seed: int, seconds_per_step: float, failure: Path) -> Result | None:
    """Read a run's figures; None if it is not finished."""
    report = run.folder / "evaluation.json"
    diverged = failure.read_text(encoding="utf-8").strip() if failure.exists() else ""
    measured = not diverged and report.exists()
    content = read_json(report) if measured else {}
    if not diverged and not content.get("complete"):
        return None
    bound, paper = _curve(run, "val/bound"), _curve(run, "val/bits_per_dim")
    steps = sorted(bound.keys() & paper.keys())
    return Result(
        variant,
        seed,
        seconds_per_step,
        steps,
        [bound[s] for s in steps],
        [paper[s] for s in steps],
        {k: v["value"] for k, v in content.get("bits_per_dim", {}).items() if k in ESTIMATES},
        _gap(content),
        content.get("verdict", ""),
        diverged,
    )


def _gap(report: dict[str, Any]) -> float | None:
    """Dequantized less bound, image by image, in bits/dim; None where they were not both measured."""
    checks = {check["check"]: check for check in report.get("checks", [])}
    found = (checks | report.get("differences", {})).get(GAP)
    return None if found is None else -found["value"]


def time_to(value: float, results: Sequence[Result]) -> float | None:
    """Seconds of training until the bound, averaged over seeds, was first measured at a value or below."""
    for place, step in enumerate(results[0].steps if results else ()):
        bounds = [r.bound[place] for r in results if place < len(r.bound)]
        if bounds and statistics.fmean(bounds) <= value:
            return step * results[0].seconds_per_step
    return None


def write_results(study: Study, results: Sequence[Result], out: Path) -> list[Path]:
    """Write a study's table, numbers and plot of the finished runs; returns the files, the table first."""
    files = [out / name for name in ("table.md", "results.json", "learning.png", "learning.pdf")]
    write_aside(files[0], table(study, results).encode())
    numbers = {"study": study.name, "purpose": study.purpose, "runs": [asdict(r) for r in results]}
    write_aside(files[1], (json.dumps(numbers, indent=1) + "\n").encode())
    with style():
        figure = (plot_curves if study.measurements > 1 else plot_differences)(study, results)
        for file in files[2:]:
            figure.savefig(file, dpi=150)
    return files


def table(study: Study, results: Sequence[Result]) -> str:
    """The table in Markdown: means and standard deviations over seeds, differences paired by seed."""
    first = study.variants[0].name
    budget = f"{study.seconds:g} s of training" if study.seconds else f"{study.steps:,} steps"
    lines = [
        f"{study.name}: {study.purpose}",
        "",
        f"{budget} each, seeds {', '.join(map(str, study.seeds))}; validation images, bits/dim: mean ± "
        f"standard deviation over seeds; against *{first}*: mean ± standard error of the paired differences",
        "",
        "| variant | ms/step | steps | bound | paper | dequantized − bound | "
        f"bound against {first} | dequantized |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in study.variants:
        mine = [r for r in results if r.variant == variant.name]
        if not mine:
            continue
        done = [r for r in mine if r.final]
        lost = f" ({len(mine) - len(done)} of {len(mine)} diverged)" if len(done) < len(mine) else ""
        cells = [
            variant.name,
            f"{1000 * mine[0].seconds_per_step:.0f}",
            f"{max(r.steps[-1] if r.steps else 0 for r in done):,}" if done else "—",
            _spread([r.final["bound"] for r in done]) + lost,
            _spread([r.final["paper"] for r in done]),
            _spread([r.gap for r in done if r.gap is not None], "+"),
            _spread(paired(results, first, variant.name, "bound"), "+", of_mean=True),
            _spread(paired(results, first, variant.name, "dequantized"), "+", of_mean=True),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    race = _race(study, results) if study.measurements > 1 else []
    return "\n".join([*lines, "", *race, ""])


def _race(study: Study, results: Sequence[Result]) -> list[str]:
    """How soon each variant was where the paper's recipe ends."""
    of = {v.name: [r for r in results if r.variant == v.name and r.final] for v in study.variants}
    if not of[PAPER]:
        return []
    # The evaluation's bound, which may use the Gaussian over more of the noise than the one in training.
    goal = statistics.fmean(r.final["bound"] for r in of[PAPER])
    whole = of[PAPER][0].steps[-1] * of[PAPER][0].seconds_per_step
    lines = [
        f"The paper's recipe reaches a bound of {goal:.3f} in {whole:.0f} s. First measured there or below:"
    ]
    for name, mine in of.items():
        seconds = time_to(goal, mine)
        if name != PAPER and seconds is not None:
            ratio = f", 1/{whole / seconds:.3g} of the time" if seconds < whole else ""
            at_once = seconds <= mine[0].steps[0] * mine[0].seconds_per_step
            at_once_said = " (its first measurement)" if at_once else ""
            lines.append(f"- {name}: after {seconds:.1f} s{ratio}{at_once_said}")
    return lines


def _spread(values: Sequence[float], sign: str = "", of_mean: bool = False) -> str:
    """Mean ± standard deviation, or ± standard error of the mean; `sign` as in a format."""
    if not values:
        return "—"
    spread = standard_error(values) if of_mean else statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")


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
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    colors = mpl.colormaps["tab20"]
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
    figure = Figure(figsize=(6.4, 1.2 + 0.22 * len(order)), layout="constrained")
    axes = figure.subplots()
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
