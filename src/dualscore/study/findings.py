"""What a study found: curves out of the runs' logs, a table, a plot and the numbers."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualscore.figures.page import style
from dualscore.files.aside import write_aside
from dualscore.runs.folder import Run
from dualscore.study.plot import Result, paired, plot_curves, plot_differences, standard_error
from dualscore.study.variants import PAPER, Study

ESTIMATES = ("bound", "paper", "dequantized")
GAP = "bound − dequantized"
"""A key of an evaluation's differences; reports before 0.2 have it among their checks."""


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
    content = json.loads(report.read_text(encoding="utf-8")) if measured else {}
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
        plt.close(figure)
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
