"""An evaluation's report as tables, and what it comes to in sentences."""

import math
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualscore.measuring.checks import HEAT, RISE
from dualscore.measuring.estimators import label, limit_label
from dualscore.measuring.row_figures import estimate_of
from dualscore.measuring.subject import KINDS
from dualscore.networks.mean_free import table_nats
from dualscore.noise import in_decibels
from dualscore.terminal.boxes import fitting
from dualscore.terminal.console import Terminal

MARKS = {"consistent": (" ", ""), "inconsistent": ("✗", "red"), "undecided": ("?", "yellow")}

Report = dict[str, Any]


def print_report(report: Report, console: Terminal) -> None:
    """Print an evaluation as tables and one line of verdict."""
    data, shape = report["dataset"], "×".join(map(str, report["image_shape"]))
    about = f", step {report['step']:,}, {report['weights']} weights · {KINDS[data['split']]} images {shape}"
    title = Text.assemble("\n", (report["experiment"], "bold"), f"{about} · {data['release']}")
    console.final(title, soft_wrap=True)
    console.final(_likelihoods(report))
    console.final(_levels(report, console))
    if weights := report.get("truth", {}).get("component_weights"):
        pairs = zip(weights["model"], weights["truth"], strict=True)
        shown = ", ".join(f"{model:.3f} ({truth:.3f})" for model, truth in pairs)
        console.final(f"weights of the components (truth): {shown}", soft_wrap=True)
    for line in legend(report):
        console.print(line, style="dim", soft_wrap=True)
    for line in _sentences(report):
        console.final(line, soft_wrap=True)
    console.final(Text.assemble(("verdict", "bold"), f": {report['verdict']}"), soft_wrap=True)


def legend(report: Report) -> list[str]:
    """Explain the tables' columns to a first-time reader."""
    over = "photographs" if _over_photographs(report) else "images; their photographs are not known"
    lines = [
        f"±: standard error over {over}",
        "dB in, out: PSNR of noisy images, and of the same denoised; space, time: the two losses;",
        f"d_eff: how many of the {report['dimension']:,} dimensions an image can vary in below that noise",
    ]
    if report["dataset"].get("mean_free"):
        lines.append("nats: the log-likelihood of a patch, as the tables of BSDS300 have it")
    if any(_gaps(report)):
        lines.append(
            "rise to next: gap in bits/dim between two ways to the same energy, heat eq.: root mean square "
            "of one over images; 0 if it is right; ✗: it is not, ?: undecided"
        )
    return lines


def _over_photographs(report: Report) -> bool:
    return any(figure.get("photographs") for figure in report["bits_per_dim"].values())


def _sentences(report: Report) -> Iterator[str]:
    """Sentences on the bound beside another model, the mass, and the energy image by image."""
    causal = report.get("yardsticks", {}).get("causal", {})
    name = f"bound − {causal.get('label')}"
    if (gap := report["differences"].get(name)) is not None:
        error = "" if gap["stderr"] is None else f" ± {gap['stderr']:.3f}"
        yield f"{name}, the same {gap['images']:,} images: {gap['value']:+.3f}{error} bits/dim"
    if (found := report.get("normalization")) is not None:
        yield found["text"]
    if (images := report.get("image_by_image")) is not None:
        gaps = ", ".join(f"{part['value']:+.3f}" for part in images["quintiles"])
        root = math.sqrt(max(0.0, images["mean_square"]["value"]))
        yield (
            f"image by image: what the denoiser says less the energy {root:.3f} bits/dim rms, "
            f"{images['mean']['value']:+.3f} in the mean; by quintile of bits {gaps}"
        )


def _gaps(report: Report) -> list[dict[str, Any]]:
    """The checks that have a column: the energy's rise and the heat equation, by where they are."""
    return [{c["where"]: c for c in report["checks"] if c["check"] == name} for name in (RISE, HEAT)]


def _likelihoods(report: Report) -> Table:
    """Every estimate, the truth and the yardsticks, a row each."""
    truth, counted = report.get("truth"), ["images"]
    if _over_photographs(report):
        counted = ["photographs", "images"]
    above = ["above the truth"] if truth else []
    side = math.isqrt(report["dimension"] + 1) if report["dataset"].get("mean_free") else 0
    nats = ["nats"] if side else []
    table = Table("bits/dim", KINDS[report["dataset"]["split"]], *nats, *above, *counted, "evaluations/image")

    def add(name: str, figure: dict[str, Any], shown: str = "", each: str = "") -> None:
        gap = [str(estimate_of(figure["above_truth"])) if "above_truth" in figure else ""] if truth else []
        counts = [f"{figure[key]:,}" if figure.get(key) else "" for key in counted]
        value = figure["value"]
        also = [f"{table_nats(value, side):.1f}" if value is not None else ""] if side else []
        table.add_row(name, shown or str(estimate_of(figure)), *also, *gap, *counts, each)

    for name, figure in report["bits_per_dim"].items():
        add(label(name), figure, each=f"{figure['evaluations'] / figure['images']:.4g}")
        if (certificate := figure.get("certificate")) is not None:
            add(limit_label(name), certificate, f"{certificate['value']:.3f}")
    if truth:
        add("truth", {key: truth[key] for key in ("value", "stderr", "images")})
    if train := report.get("train"):
        add("paper's, training", train)
    for figure in report.get("yardsticks", {}).values():
        value, shown = figure["value"], ""
        if value is None or figure["kind"] == "file":
            shown = figure["note"] if value is None else f"{value:.3f}"
        add(figure["label"], figure, shown)
    return table


def _levels(report: Report, console: Console) -> Table:
    """Losses and checks, a row a noise level."""
    (rise, heat), truth = _gaps(report), report.get("truth", {}).get("energy_error_db_per_dim")
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


def _marked(gap: dict[str, Any] | None) -> Text:
    if gap is None:
        return Text("—")
    shown = f"{gap['value']:.3f}" if gap["stderr"] is None else f"{gap['value']:+.3f} ± {gap['stderr']:.3f}"
    return Text.assemble(shown, MARKS[gap["word"]])
