"""What a detection writes and says: a row an image, and a table of the areas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from dualscore.detection.measure import Measured
from dualscore.detection.scores import SCORES, flag
from dualscore.scoring import tables
from dualscore.scoring.photograph_means import Counted
from dualscore.terminal import final


def write_rows(
    path: Path, parts: Mapping[str, tuple[Measured, Mapping[str, Tensor]]], levels: Sequence[float]
) -> None:
    """Write a row an image.

    Args:
        path: the CSV file.
        parts: figures and scores of the reference, of the rest of --in and of --out, by those names.
        levels: noise levels of the profiles in dB.
    """
    names = ["bits_per_dim", *list(SCORES)[1:], *(f"d_eff_{level:g}dB" for level in levels)]
    with tables.open_csv(path, ["file", "side", *names]) as file:
        for side, (measured, scores) in parts.items():
            numbers = [*(scores[name].tolist() for name in SCORES), *measured.profile.T.tolist()]
            rows = zip(measured.paths, *numbers, strict=True)
            tables.append(file, [[name, side, *(f"{x:.7g}" for x in values)] for name, *values in rows])


def tell(summary: Mapping[str, Any], counted: Mapping[str, Counted], results: Path, console: Console) -> None:
    """Print of each score its medians on either side and its AUROC, and what was compared.

    Args:
        summary: what ood.json holds.
        counted: photographs of either side.
        results: folder.
        console: the terminal.
    """
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
    lines = [
        f"{images['in']:,} images of {inside} against {images['out']:,} of {outside}; "
        f"{images['reference']:,} others of {inside} are the reference"
        + (f"; {failed:,} left out, see {results / 'failures.csv'}" if failed else "")
    ]
    over = f"{counted['in']} of {inside}, {counted['out']} of {outside}"
    fewest = min(counted["in"].total, counted["out"].total)
    lines.append(f"no intervals: {over}" if fewest == 1 else f"intervals are over {over}")
    if both := summary["on_both_sides"]:
        lines.append(f"{both:,} of {outside} are in {inside} too: no score can tell them apart")
    if any(found["low"] is not None and found["auroc"] in (0.0, 1.0) for found in summary["scores"].values()):
        lines.append(
            "where no image overlaps the interval is one point: it does not say how rare overlaps are"
        )
    lines.append(f"written to {results}: ood.csv, ood.json, failures.csv, ood.png, ood.pdf")
    for line in lines:
        final(console, line, soft_wrap=True)
