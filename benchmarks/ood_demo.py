"""Tells the demo's held-out photographs from textures, text, noise and flat patches: docs/ood.md's table.

python benchmarks/ood_demo.py [--model runs/patches_dual] [--out ood-demo]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from data_prep.sources.crops import cut
from data_prep.sources.demo import VAL, locate
from dualscore.detection.run import Options, detect

SIDE = 16
OTHERS = ("brick", "grass", "gravel", "text", "page", "coins", "moon", "hubble_deep_field")
"""What else scikit-image ships."""
MOST = 500


def photographs() -> Iterator[NDArray[np.uint8]]:
    """Crops of the demo's two validation photographs, as the demo cuts them."""
    for package, file in VAL.values():
        yield from crops(locate(package, file))


def crops(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Crops side by side at scales 1, ½ and ¼, each of shape (SIDE, SIDE, 3)."""
    with Image.open(path) as file:
        for grid in cut(file.convert("RGB"), SIDE, SIDE, 3):
            yield from grid.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def save(folder: Path, images: list[NDArray[np.uint8]], most: int) -> Path:
    """Write images as PNG; of more than `most` that many, evenly spaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)):
        Image.fromarray(images[number]).save(folder / f"{number:05d}.png")
    return folder


def folders(out: Path, most: int = MOST) -> dict[str, Path]:
    """Write all sets of images.

    Args:
        out: folder of their folders.
        most: images of a set.

    Returns:
        The folders by name; `photographs` are the ones to tell the others from.
    """
    made = {"photographs": save(out / "photographs", list(photographs()), 4 * most)}
    for name in OTHERS:
        ending = "jpg" if name == "hubble_deep_field" else "png"
        made[name] = save(out / name, list(crops(locate("skimage", f"data/{name}.{ending}"))), most)
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (most, SIDE, SIDE), dtype=np.uint8)
    made["uniform noise"] = save(out / "noise", list(noise), most)
    made["constant"] = save(out / "constant", [np.full((SIDE, SIDE), v, np.uint8) for v in range(256)], most)
    return made


def main() -> int:
    """Make the sets, run the command's function on each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/patches_dual"))
    parser.add_argument("--out", type=Path, default=Path("ood-demo"))
    arguments = parser.parse_args()
    made = folders(arguments.out / "images")
    inside = made.pop("photographs")
    print("| out | bits/dim, in | out | log p | typicality | d_eff profile |\n|---|---|---|---|---|---|")
    for name, folder in made.items():
        options = Options(arguments.out / folder.name)
        found = detect(arguments.model, [inside], [folder], options, Console(quiet=True))["scores"]
        bits = found["log_p"]
        areas = " | ".join(f"{s['auroc']:.3f} ({s['low']:.3f}–{s['high']:.3f})" for s in found.values())
        print(f"| {name} | {bits['median_in']:.2f} | {bits['median_out']:.2f} | {areas} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
