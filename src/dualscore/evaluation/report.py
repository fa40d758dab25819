"""evaluation.json, and the same on the terminal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualscore.evaluation.figures import estimate_of
from dualscore.files.aside import write_aside
from dualscore.noise import in_decibels
from dualscore.terminal import final
from dualscore.terminal.boxes import fitting


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write evaluation.json, whole or not at all."""
    write_aside(path, (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def print_figure(label: str, figure: dict[str, Any], console: Console) -> None:
    """Print an estimate as soon as it is there."""
    console.print(
        f"{label:18} {estimate_of(figure)} bits/dim · {figure['images']:,} images, "
        f"{figure['evaluations']:,} network evaluations",
        soft_wrap=True,
    )


def print_report(report: dict[str, Any], label: Callable[[str], str], console: Console) -> None:
    """Print an evaluation as tables and one line of verdict; `label` tells what an estimate is called."""
    data = report["dataset"]
    shape = "×".join(map(str, report["image_shape"]))
    final(
        console,
        Text.assemble(
            "\n",
            (report["experiment"], "bold"),
            f", step {report['step']:,}, {report['weights']} weights · ",
            f"validation images {shape} · {data['release']}",
        ),
        soft_wrap=True,
    )
    final(console, _likelihoods(report, label))
    final(console, _levels(report, console))
    if weights := report.get("truth", {}).get("component_weights"):
        pairs = zip(weights["model"], weights["truth"], strict=True)
        shown = ", ".join(f"{model:.3f} ({truth:.3f})" for model, truth in pairs)
        final(console, f"weights of the components (truth): {shown}", soft_wrap=True)
    for line in legend(report):
        console.print(line, style="dim", soft_wrap=True)
    final(console, Text.assemble(("verdict", "bold"), f": {report['verdict']}"), soft_wrap=True)


def legend(report: dict[str, Any]) -> list[str]:
    """What the columns of the second table are, for who reads them for the first time."""
    lines = [
        "dB in, out: PSNR of noisy images, and of the same denoised; space, time: the two losses;",
        f"d_eff: how many of the {report['dimension']:,} dimensions an image can vary in below that noise",
    ]
    rise, heat = _gaps(report)
    if rise or heat:
        lines.append(
            "rise to next, heat eq.: gaps in bits/dim between two ways to the same energy, 0 if it is right; "
            "✗: not 0 within its error"
        )
    return lines


def _gaps(report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checks that have a column: the energy's rise and the heat equation, by where they are."""
    checks = report["checks"]
    rise, heat = (
        {gap["where"]: gap for gap in checks if gap["check"] == name}
        for name in ("energy rise", "heat equation")
    )
    return rise, heat


def _likelihoods(report: dict[str, Any], label: Callable[[str], str]) -> Table:
    truth = report.get("truth")
    columns = [
        "bits/dim",
        "validation",
        *(["above the truth"] if truth else []),
        "images",
        "evaluations/image",
    ]
    table = Table(*columns)
    for name, figure in report["bits_per_dim"].items():
        gap = [str(estimate_of(figure["above_truth"]))] if truth else []
        each = figure["evaluations"] / figure["images"]
        table.add_row(label(name), str(estimate_of(figure)), *gap, f"{figure['images']:,}", f"{each:.4g}")
    if truth:
        table.add_row("truth", str(estimate_of(truth)), "", f"{truth['images']:,}", "")
    train = report.get("train")
    if train:
        estimate = str(estimate_of(train))
        gap = [""] if truth else []
        table.add_row("paper's, training", estimate, *gap, f"{train['images']:,}", "")
    names = {"stationary": "Gaussian, stationary", "full_covariance": "Gaussian, full cov."}
    for key, name in names.items():
        value = report["gaussian"][key]
        shown = "d is too large" if value is None else f"{value:.3f}"
        gap = [""] if truth else []
        table.add_row(name, shown, *gap, f"{report['gaussian']['images']:,}", "")
    return table


def _levels(report: dict[str, Any], console: Console) -> Table:
    rise, heat = _gaps(report)
    truth = report.get("truth", {}).get("energy_error_db_per_dim")
    columns = [
        "dB in", "dB out", "space", "time", "d_eff",
        *(["rise to next", "heat eq."] if rise or heat else []),
        *(["error, dB/dim"] if truth else []),
    ]  # fmt: skip
    rows: list[list[str | Text]] = []
    for j, level in enumerate(report["noise_levels"]):
        name = in_decibels(level["noise_variance"])
        cells: list[str | Text] = [
            name,
            f"{level['psnr_out']:.2f}",
            f"{level['space_loss']:.4f}",
            "—" if level["time_loss"] is None else f"{level['time_loss']:.2e}",
            f"{level['effective_dimension']:,.1f}",
        ]
        if rise or heat:
            above = next((gap for where, gap in rise.items() if where.startswith(f"{name} to ")), None)
            cells += [_signed(above), _signed(heat.get(f"{name} dB"))]
        if truth:
            cells.append(f"{truth[j]:.3f}")
        rows.append(cells)
    return fitting(console, columns, rows, spare=["time", "space"])


def _signed(gap: dict[str, Any] | None) -> Text:
    if gap is None:
        return Text("—")
    mark = " " if gap["consistent"] else ("✗", "red")
    return Text.assemble(f"{gap['value']:+.3f} ± {gap['stderr']:.3f}", mark)
