"""evaluation.json, and the same on the terminal."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualscore.evaluation.session import KINDS
from dualscore.evaluation.yardsticks import CAUSAL, FILE, LABELS
from dualscore.files.aside import write_aside
from dualscore.measuring.checks import HEAT, RISE
from dualscore.measuring.estimators import label
from dualscore.measuring.row_figures import estimate_of
from dualscore.noise import in_decibels
from dualscore.terminal.boxes import fitting
from dualscore.terminal.console import final


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


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print an evaluation as tables and one line of verdict."""
    data = report["dataset"]
    shape = "×".join(map(str, report["image_shape"]))
    final(
        console,
        Text.assemble(
            "\n",
            (report["experiment"], "bold"),
            f", step {report['step']:,}, {report['weights']} weights · ",
            f"{KINDS[data['split']]} images {shape} · {data['release']}",
        ),
        soft_wrap=True,
    )
    final(console, _likelihoods(report))
    final(console, _levels(report, console))
    if weights := report.get("truth", {}).get("component_weights"):
        pairs = zip(weights["model"], weights["truth"], strict=True)
        shown = ", ".join(f"{model:.3f} ({truth:.3f})" for model, truth in pairs)
        final(console, f"weights of the components (truth): {shown}", soft_wrap=True)
    for line in legend(report):
        console.print(line, style="dim", soft_wrap=True)
    for line in _sentences(report):
        final(console, line, soft_wrap=True)
    final(console, Text.assemble(("verdict", "bold"), f": {report['verdict']}"), soft_wrap=True)


def legend(report: dict[str, Any]) -> list[str]:
    """Explain the tables' columns to a first-time reader."""
    over = "photographs" if _over_photographs(report) else "images; their photographs are not known"
    lines = [
        f"±: standard error over {over}",
        "dB in, out: PSNR of noisy images, and of the same denoised; space, time: the two losses;",
        f"d_eff: how many of the {report['dimension']:,} dimensions an image can vary in below that noise",
    ]
    rise, heat = _gaps(report)
    if rise or heat:
        lines.append(
            "rise to next: gap in bits/dim between two ways to the same energy, heat eq.: root mean square "
            "of one over images; 0 if it is right; ✗: it is not, ?: undecided"
        )
    return lines


def _over_photographs(report: dict[str, Any]) -> bool:
    return any(figure.get("photographs") for figure in report["bits_per_dim"].values())


def _sentences(report: dict[str, Any]) -> list[str]:
    """Sentences on the bound beside another model, the mass, and the energy image by image."""
    lines = [
        f"{name}, the same {gap['images']:,} images: {gap['value']:+.3f}"
        + (f" ± {gap['stderr']:.3f} bits/dim" if gap["stderr"] is not None else " bits/dim")
        for name, gap in report["differences"].items()
        if name == f"bound − {LABELS[CAUSAL]}"
    ]
    if (found := report.get("normalization")) is not None:
        lines.append(found["text"])
    if (images := report.get("image_by_image")) is not None:
        gaps = ", ".join(f"{part['value']:+.3f}" for part in images["quintiles"])
        root = math.sqrt(max(0.0, images["mean_square"]["value"]))
        lines.append(
            f"image by image: what the denoiser says less the energy {root:.3f} bits/dim rms, "
            f"{images['mean']['value']:+.3f} in the mean; by quintile of bits {gaps}"
        )
    return lines


def _gaps(report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checks that have a column: the energy's rise and the heat equation, by where they are."""
    checks = report["checks"]
    rise, heat = ({gap["where"]: gap for gap in checks if gap["check"] == name} for name in (RISE, HEAT))
    return rise, heat


def _likelihoods(report: dict[str, Any]) -> Table:
    """Every estimate, the truth and the yardsticks, a row each."""
    truth, photographs = report.get("truth"), _over_photographs(report)
    table = Table("bits/dim", KINDS[report["dataset"]["split"]])
    optional = {
        "above the truth": truth,
        "photographs": photographs,
        "images": True,
        "evaluations/image": True,
    }
    for column in (name for name, there in optional.items() if there):
        table.add_column(column)

    def add(name: str, figure: dict[str, Any], shown: str = "", each: str = "") -> None:
        row = [name, shown or str(estimate_of(figure))]
        if truth:
            row.append(str(estimate_of(figure["above_truth"])) if "above_truth" in figure else "")
        for key in ["photographs", "images"] if photographs else ["images"]:
            row.append(f"{figure[key]:,}" if figure.get(key) else "")
        table.add_row(*row, each)

    for name, figure in report["bits_per_dim"].items():
        add(label(name), figure, each=f"{figure['evaluations'] / figure['images']:.4g}")
        if (certificate := figure.get("certificate")) is not None:
            add(f"{label(name)}, at most (95 %)", certificate, f"{certificate['value']:.3f}")
    if truth:
        add("truth", {key: truth[key] for key in ("value", "stderr", "images")})
    if train := report.get("train"):
        add("paper's, training", train)
    for figure in report.get("yardsticks", {}).values():
        value = figure["value"]
        if value is None or figure["kind"] == FILE:
            add(figure["label"], figure, figure["note"] if value is None else f"{value:.3f}")
        else:
            add(figure["label"], figure)
    return table


def _levels(report: dict[str, Any], console: Console) -> Table:
    """Losses and checks, a row a noise level."""
    rise, heat = _gaps(report)
    truth = report.get("truth", {}).get("energy_error_db_per_dim")
    columns = ["dB in", "dB out", "space", "time", "d_eff"]
    columns += ["rise to next", "heat eq."] if rise or heat else []
    columns += ["error, dB/dim"] if truth else []
    rows: list[list[str | Text]] = []
    for j, level in enumerate(report["noise_levels"]):
        name, time = in_decibels(level["noise_variance"]), level["time_loss"]
        cells: list[str | Text] = [
            name,
            f"{level['psnr_out']:.2f}",
            f"{level['space_loss']:.4f}",
            "—" if time is None else f"{time:.2e}",
            f"{level['effective_dimension']:,.1f}",
        ]
        if rise or heat:
            above = next((gap for where, gap in rise.items() if where.startswith(f"{name} to ")), None)
            cells += [_marked(above), _marked(heat.get(f"{name} dB"))]
        if truth:
            cells.append(f"{truth[j]:.3f}")
        rows.append(cells)
    return fitting(console, columns, rows, spare=["time", "space"])


MARKS = {"consistent": (" ", ""), "inconsistent": ("✗", "red"), "undecided": ("?", "yellow")}


def _marked(gap: dict[str, Any] | None) -> Text:
    if gap is None:
        return Text("—")
    shown = f"{gap['value']:.3f}" if gap["stderr"] is None else f"{gap['value']:+.3f} ± {gap['stderr']:.3f}"
    return Text.assemble(shown, MARKS[gap["word"]])
