"""The report as a page: tables, plots, lines for the docs; and two machines side by side."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.gpu.accuracy import KINDS
from benchmarks.gpu.jobs import Row, read_rows, write_json
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.steps import BASELINE, CHIEF
from dualscore.figures.page import style

STEPS_A_RUN, VALIDATIONS, VALIDATED = 1_000_000, 500, 2048
"""Of `imagenet64_dual`: steps, validations and images validated each time."""


def collect(out: Path, states: dict[str, str]) -> dict[str, Any]:
    """All results so far, written to `report.json`.

    Args:
        out: the report's folder.
        states: what became of each part.

    Returns:
        The report.
    """
    parts = {
        name: {"state": states[name], "rows": read_rows(out / "parts" / f"{name}.json")} for name in PARTS
    }
    report = {"parts": parts, "arithmetic": arithmetic(parts)}
    write_json(out / "report.json", report)
    return report


def arithmetic(parts: dict[str, Any]) -> list[str]:
    """What a full run of `imagenet64_dual` would take, and the figures that the docs should carry."""
    steps, running = parts["steps"]["rows"], parts["running"]["rows"]
    device = parts["machine"]["rows"].get("machine", {}).get("device", "this machine")
    lines = []
    base, chief = steps.get(BASELINE.name, {}), steps.get(CHIEF.name, {})
    if "ms" in base and "ms" in chief:
        batch, ratio = round(chief["images/s"] * chief["ms"] / 1e3), base["ms"] / chief["ms"]
        lines.append(
            f"{device}: a step of imagenet64_dual, batch {batch}, takes {chief['ms']:.1f} ms compiled in "
            f"bf16, {ratio:.1f} times faster than the plain code in fp32 ({base['ms']:.1f} ms)."
        )
    seen = running.get("imagenet64_dual, watched", {})
    if "ms a step" in seen:
        training = STEPS_A_RUN * seen["ms a step"] / 3.6e6
        each = VALIDATED / seen["validated images/s"] + seen["a validation beside its images, s"]
        validating = VALIDATIONS * each / 3600
        lines.append(
            f"{device}: a full run of imagenet64_dual takes {training + validating:.1f} hours: "
            f"{STEPS_A_RUN:,} steps of {seen['ms a step']:.1f} ms are {training:.1f}, {VALIDATIONS} "
            f"validations of {VALIDATED:,} images in {each:.1f} s are {validating:.1f}; "
            "the evaluation is not in it."
        )
    return lines


def write_page(out: Path, report: dict[str, Any]) -> None:
    """Write `report.md` and its plots.

    Args:
        out: the report's folder.
        report: as `collect` returns it.
    """
    lines = ["# GPU report", "", *(f"- {line}" for line in report["arithmetic"]), ""]
    with style():
        plots = _steps_plot(report, out), _levels_plot(report, out)
    if (plot := plots[0]) is not None:
        lines += [f"![Milliseconds a step]({plot})", ""]
    if (plot := plots[1]) is not None:
        lines += [f"![Differences from fp32 at each noise level]({plot})", ""]
    for name, part in PARTS.items():
        found = report["parts"][name]
        lines += [f"## {part.title}", ""]
        lines += [f"*{found['state']}*", ""] if found["state"] != "complete" else []
        lines += [*_table(found["rows"]), ""] if found["rows"] else []
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")


def _columns(rows: dict[str, Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows.values() for column in row))


def _table(rows: dict[str, Row]) -> Iterator[str]:
    columns = _columns(rows)
    yield f"| | {' | '.join(columns)} |"
    yield "|" + " --- |" * (len(columns) + 1)
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(shown(row.get(column)) for column in columns)} |"


def shown(value: object) -> str:
    """A figure to three digits, larger ones to the unit."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


def _steps_plot(report: dict[str, Any], out: Path) -> str | None:
    times = {name: row["ms"] for name, row in report["parts"]["steps"]["rows"].items() if row.get("ms")}
    if not times:
        return None
    figure = Figure(figsize=(9, 0.6 + 0.3 * len(times)), layout="constrained")
    axes = figure.subplots()
    names = sorted(times, key=times.__getitem__, reverse=True)
    axes.barh(names, [times[name] for name in names])
    axes.set_xlabel("milliseconds")
    figure.savefig(out / "steps.png", dpi=110)
    return "steps.png"


def _levels_plot(report: dict[str, Any], out: Path) -> str | None:
    rows = report["parts"]["levels"]["rows"]
    series: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for name, row in rows.items():
        if "failed" not in row:
            kind, precision, level = name.rsplit(", ", 2)
            series.setdefault((kind, precision), []).append((float(level.removesuffix(" dB")), row))
    if not series:
        return None
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = ["its relative difference", "that one's", "bits/dim, largest"]
    titles = ["space loss, relative", "time loss, relative", "energy, bits/dim, largest"]
    for axes, column, title in zip(figure.subplots(1, 3), panels, titles, strict=True):
        for (kind, precision), points in series.items():
            levels, values = zip(*((level, abs(row[column])) for level, row in points), strict=True)
            line = "-" if precision == "bf16" else ":"
            axes.plot(
                levels, values, line, marker=".", color=f"C{KINDS.index(kind)}", label=f"{kind}, {precision}"
            )
        axes.set(title=title, xlabel="noise level, dB", yscale="log")
        axes.invert_xaxis()
    axes.legend(fontsize=7)
    figure.savefig(out / "levels.png", dpi=110)
    return "levels.png"


def read_report(path: Path) -> dict[str, Any]:
    """Read another machine's report.

    Args:
        path: its `report.json`.

    Returns:
        The report.

    Raises:
        ValueError: in words, if there is none.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        report["parts"]["machine"]["rows"]
    except OSError:
        raise ValueError(f"{path}: there is no such file; give another machine's report.json") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a report.json that make gpu-report wrote") from None
    return report


def compare(out: Path, report: dict[str, Any], second: dict[str, Any]) -> Path:
    """Write `compared.md`: every figure that both reports have, and their ratio.

    Args:
        out: the report's folder.
        report: this machine's.
        second: another one's.

    Returns:
        The page.
    """
    lines = [f"# {_device(report)} and {_device(second)}", ""]
    for name, part in PARTS.items():
        rows, others = (r["parts"].get(name, {}).get("rows", {}) for r in (report, second))
        body = [
            f"| {row}: {column} | {shown(ours)} | {shown(theirs)} | {_ratio(ours, theirs)} |"
            for row, figures in rows.items()
            for column, ours in figures.items()
            if (theirs := others.get(row, {}).get(column)) is not None
        ]
        if body:
            lines += [
                f"## {part.title}",
                "",
                "| | first | second | first/second |",
                "| --- | --- | --- | --- |",
                *body,
                "",
            ]
    (out / "compared.md").write_text("\n".join(lines), encoding="utf-8")
    return out / "compared.md"


def _device(report: dict[str, Any]) -> str:
    return str(report["parts"]["machine"]["rows"].get("machine", {}).get("device", "an unknown machine"))


def _ratio(ours: object, theirs: object) -> str:
    numbers = isinstance(ours, int | float) and isinstance(theirs, int | float)
    return f"{ours / theirs:.2f}" if numbers and theirs else ""  # type: ignore[operator]
