"""Tells the demo's held-out photographs from textures, text, noise and flat patches: docs/ood.md's table.

python benchmarks/ood_demo.py [--model runs/patches_dual] [--out ood-demo] [--most 500]
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from data_prep.examples import crops, save
from data_prep.sources.demo import VAL, locate
from dualscore.scoring.detect_ood import detect
from dualscore.scoring.ood_scores import area
from dualscore.terminal.any_terminal import fit_any_terminal

SIDE = 16
OTHERS = (
    "brick.png",
    "grass.png",
    "gravel.png",
    "text.png",
    "page.png",
    "coins.png",
    "moon.png",
    "hubble_deep_field.jpg",
)
"""What else scikit-image ships."""
MOST = 500


def photographs() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Crops of the demo's two validation photographs, as the demo cuts them, with the photograph's name."""
    for name, (package, file) in VAL.items():
        yield from ((name, crop) for crop in crops(locate(package, file), SIDE))


def folders(out: Path, most: int) -> list[Path]:
    """Write all sets of images, at most `most` in each, the photographs first and four times as many."""
    draw = np.random.default_rng(0)
    made = [save(out / "photographs", list(photographs()), 4 * most)]
    for name in OTHERS:
        path = locate("skimage", f"data/{name}")
        made.append(save(out / path.stem, [("all", crop) for crop in crops(path, SIDE)], most))
    noise = [("", image) for image in draw.integers(0, 256, (most, SIDE, SIDE), dtype=np.uint8)]
    flat = [("", np.full((SIDE, SIDE), value, np.uint8)) for value in range(256)]
    return [*made, save(out / "noise", noise, most), save(out / "constant", flat, most)]


def table(results: Path) -> Iterator[str]:
    """The areas of each folder of --out by itself, as a table in Markdown, from ood.csv.

    Beside the command's scores stands the distance |log p − median|, which its typicality is instead of.
    A folder's crops are of one photograph, so there are no intervals.
    """
    columns = {
        "log p": "bits_per_dim",
        "distance": "",
        "typicality": "typicality",
        "d_eff profile": "profile",
    }
    sides: dict[str, list[dict[str, str]]] = {}
    with (results / "ood.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            below = Path(row["file"]).relative_to(results / "images")
            side = row["side"] if row["side"] != "out" else below.parts[0]
            sides.setdefault(side, []).append(row)

    def values(side: str, column: str) -> Tensor:
        found = [float(row[column or "bits_per_dim"]) for row in sides[side]]
        return torch.tensor(found, dtype=torch.float64)

    middle = values("reference", "").median()
    yield f"| out | bits/dim | {' | '.join(columns)} |"
    yield "| --- " * (2 + len(columns)) + "|"
    for side in sides:
        if side not in {"reference", "in"}:
            cells = []
            for column in columns.values():
                two = [values(which, column) for which in ("in", side)]
                found = area(*(two if column else [(scores - middle).abs() for scores in two]))
                cells.append(f"{found.auroc:.3f}")
            yield f"| {side} | {float(values(side, '').median()):.2f} | {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    """Make the sets, detect, print the table of each set."""
    fit_any_terminal()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/patches_dual"))
    parser.add_argument("--out", type=Path, default=Path("ood-demo"))
    parser.add_argument("--most", type=int, default=MOST, help="images of a set; of photographs four times")
    arguments = parser.parse_args(argv)
    inside, *outside = folders(arguments.out / "images", arguments.most)
    console = Console()
    for part in detect(arguments.model, [inside], outside, arguments.out, console).report:
        console.print(part, soft_wrap=isinstance(part, str))
    for line in table(arguments.out):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
