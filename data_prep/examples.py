"""Pictures to try a trained model on: photographs that the demo holds out, crops of them and of others.

python -m data_prep.examples [--size 16] [--out examples]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.sources.crops import cut
from data_prep.sources.demo import VAL, locate
from dualscore.errors import DataError
from dualscore.pictures.photographs import read_rgb
from dualscore.terminal.any_terminal import fit_any_terminal

TEXTURES = ("brick", "grass", "gravel")
"""Photographs of surfaces that scikit-image ships, of another kind than the demo's."""
MOST = 128
"""Crops written of a kind."""


def write_examples(out: Path, size: int) -> list[Path]:
    """Write the demo's held-out photographs, and crops of them and of textures, as PNG files.

    Args:
        out: the folder; it gets `photographs`, and `patches` and `textures` with a sub-folder a photograph.
        size: side of the crops in pixels.

    Returns:
        The three folders.

    Raises:
        DataError: if the size is too small or leaves no crop, or a photograph is missing.
    """
    if size < 4:
        raise DataError(f"--size must be at least 4, not {size}")
    held_out = [locate(package, file) for package, file in VAL.values()]
    textures = [locate("skimage", f"data/{name}.png") for name in TEXTURES]
    kinds = {"patches": zip(VAL, held_out, strict=True), "textures": zip(TEXTURES, textures, strict=True)}
    folder = out / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in zip(VAL, held_out, strict=True):
        read_rgb(path).save(folder / f"{name}.png")
    made = [folder]
    for kind, photographs in kinds.items():
        images = [(name, crop) for name, path in photographs for crop in crops(path, size)]
        if not images:
            raise DataError(f"no photograph holds a crop of {size}×{size}: choose a smaller --size")
        made.append(save(out / kind, images, MOST))
    return made


def crops(path: Path, side: int) -> Iterator[NDArray[np.uint8]]:
    """Crops of a photograph side by side at scales 1, ½ and ¼, as the demo validates on: (side, side, 3)."""
    for grid in cut(read_rgb(path), side, side, 3):
        yield from grid.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def save(folder: Path, images: Sequence[tuple[str, NDArray[np.uint8]]], most: int) -> Path:
    """Write images as PNG; of more than `most` that many, evenly spaced.

    Args:
        folder: made where it is missing.
        images: each with the sub-folder that it goes into, the photograph's name, or "" for none; uint8,
            of shape (H, W) or (H, W, 3).
        most: how many at most.

    Returns:
        The folder.
    """
    for number in np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)):
        name, pixels = images[number]
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:05d}.png")
    return folder


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    found = argparse.ArgumentParser(prog="python -m data_prep.examples", description=__doc__)
    found.add_argument("--out", type=Path, default=Path("examples"), help="folder to write (examples)")
    found.add_argument("--size", type=int, default=16, metavar="PIXELS", help="side of a crop (16)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures; returns the exit status, 0 or 1."""
    fit_any_terminal()
    options = parser().parse_args(arguments)
    try:
        print("written: " + ", ".join(map(str, write_examples(options.out, options.size))))
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
