"""Table 2: likelihoods, ours by every estimator beside what was published, each with its data's release."""

import json
from pathlib import Path
from typing import Any

from dualscore.errors import FigureError
from dualscore.evaluation import evaluate, is_complete
from dualscore.evaluation.session import KINDS
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.likelihood import published
from dualscore.measuring.estimators import kind, label
from dualscore.measuring.row_figures import estimate_of

HEADER = ["model", "bits/dim", "data", "kind", "images"]


def draw_likelihoods(trained: Trained, out: Path) -> list[Path]:
    """Write table 2 of a run; it is evaluated first, if it was not.

    Args:
        trained: the run.
        out: folder that the files are written to.

    Returns:
        The files written.

    Raises:
        FigureError: if the run's evaluation.json is of another version.
    """
    path = trained.run.folder / "evaluation.json"
    report = json.loads(path.read_text(encoding="utf-8")) if is_complete(path, trained.checkpoint) else {}
    if "yardsticks" not in report:  # not evaluated, or by an earlier version: what it kept is read again
        report = evaluate(trained.config, trained.checkpoint, path)
    name = trained.config.name
    try:
        rows, note, numbers = _content(report, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FigureError(
            f"{path}: is not what this version writes ({error!r:.80}); delete it to evaluate anew"
        ) from error
    with page.style():
        figure = page.table(HEADER, rows, f"Likelihoods of {KINDS[report['dataset']['split']]} images", note)
        return page.write(figure, numbers, out, "table2", [HEADER, *rows])


def _content(report: dict[str, Any], name: str) -> tuple[list[list[str]], str, dict[str, Any]]:
    """The table's rows, the note below it, and the numbers, of an evaluation's report."""
    data = _data(report)
    rows = [
        [
            f"{name}, {label(estimator)}",
            str(estimate_of(figure)),
            data,
            kind(estimator),
            f"{figure['images']:,}",
        ]
        for estimator, figure in report["bits_per_dim"].items()
    ]
    if (truth := report.get("truth")) is not None:
        rows.append(["truth", str(estimate_of(truth)), data, "exact", f"{truth['images']:,}"])
    yardsticks = report["yardsticks"]
    rows += [
        [y["label"], _value(y), data, y["kind"], f"{y['images']:,}"]
        for y in yardsticks.values()
        if y["value"] is not None  # a codec may be missing, or a covariance too large
    ]
    rows += [
        [
            f"{entry.model} (published)",
            f"{entry.bits_per_dim:.2f}",
            f"ImageNet64 {entry.release}",
            entry.kind,
            "",
        ]
        for entry in published.LIKELIHOODS
    ]
    note = (
        "ImageNet64 old (PNGs, no anti-aliasing), ImageNet64 new (Chrabaszcz et al.) and any other data "
        "cannot be compared with one another; new?: unclear which, probably the new one.\n"
        f"{name}: {report['verdict']}"
    )
    numbers: dict[str, Any] = {
        "experiment": name,
        "dataset": report["dataset"],
        "bits_per_dim": report["bits_per_dim"],
        "train": report.get("train"),
        "yardsticks": yardsticks,
        "verdict": report["verdict"],
        "published": [entry._asdict() for entry in published.LIKELIHOODS],
    }
    return rows, note, numbers


def _value(yardstick: dict[str, Any]) -> str:
    """A yardstick's figure; a file's length has no error."""
    return f"{yardstick['value']:.3f}" if yardstick["stderr"] is None else str(estimate_of(yardstick))


def _data(report: dict[str, Any]) -> str:
    dataset = report["dataset"]
    if dataset["name"] == published.IMAGENET64:
        return "ImageNet64 new" + (", gray" if dataset["colour"] == "gray" else "")
    if dataset["name"] == "imagenet64_png":
        return "ImageNet64 old" + (", gray" if dataset["colour"] == "gray" else "")
    shape = "×".join(map(str, report["image_shape"]))
    return f"{dataset['name']} {shape}"
