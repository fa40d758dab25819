"""Puts the trained models of `photographs_colour` and `photographs_gray` into the box, with their card.

    python -m benchmarks.box_models runs/photographs_colour runs/photographs_gray --src FOLDER_OF_PACKAGES

Each gets what photographs are ranked among: the bits/dim of those that are listed, at several sizes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep.sources.wallpaper_list import WALLPAPERS, WHEELS
from data_prep.sources.wallpapers import Wallpapers, listed_photographs
from dualscore.images import to_pixels
from dualscore.model import ImageModel
from dualscore.model_files.exported import CARD_FILE
from dualscore.model_files.loading import load, locate
from dualscore.publishing import add_evaluation, save
from dualscore.shipped import boxed

LONG_SIDES = (64, 128, 256, 512)
"""Of the photographs that others are ranked among."""
USES = {"train": "train", "val": "choose"}
LICENCE = (
    "CC BY 4.0, as far as there are rights in weights; the photographs that taught them are listed below "
    "with their authors and licences"
)


def smaller(image: Image.Image) -> Iterator[Image.Image]:
    """A photograph at each of the sizes, each pixel the mean of what it covers."""
    for side in LONG_SIDES:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        yield image.resize(size, Image.Resampling.BOX)


def references(model: ImageModel, src: Path) -> Tensor:
    """Bits/dim and number of pixels of the listed photographs at each size, (n, 2)."""
    assert model.image_shape is not None
    found = []
    for photograph in listed_photographs(Wallpapers().find(src)):
        for small in smaller(photograph.read()):
            pixels = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None]
            bits = model.bits_per_dim(to_pixels(pixels, model.image_shape[0]))
            found.append([float(bits), float(small.width * small.height)])
    return torch.tensor(found, dtype=torch.float64)


def table() -> str:
    """The photographs with authors and licences, in Markdown."""
    lines = ["| photograph | in | author | licence | used to |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {one.name} | {one.shipper} | {one.author} | {one.licence} | {USES[one.split]} |"
        for one in (*WALLPAPERS, *WHEELS)
    ]
    return "\n".join(lines)


def main() -> None:
    """Box both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="runs or checkpoints, of colour or gray")
    parser.add_argument("--src", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--figures", type=Path, help="Markdown of what was measured, for both cards")
    arguments = parser.parse_args()
    for run in arguments.runs:
        path = locate(run)
        model = load(path)
        assert model.origin is not None
        assert model.image_shape is not None
        add_evaluation(model, path)
        name = boxed.COLOUR if model.image_shape[0] == 3 else boxed.GRAY
        model.origin = replace(
            model.origin,
            name=name,
            energies=None,  # of crops; photographs are ranked among photographs
            references=references(model, arguments.src),
            reference_name=f"{len(WALLPAPERS) + len(WHEELS)} photographs at {len(LONG_SIDES)} sizes, most of "
            "them those that it learned from",
        )
        folder = boxed.boxed(name)
        assert folder is not None
        file = save(model, folder, LICENCE)
        with (folder / CARD_FILE).open("a", encoding="utf-8") as card:
            if arguments.figures is not None:
                card.write(f"\n## Whole photographs\n\n{arguments.figures.read_text(encoding='utf-8')}")
            card.write(f"\n## Photographs\n\n{table()}\n")
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
