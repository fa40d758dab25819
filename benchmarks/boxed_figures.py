"""What the boxed models reach on a folder of photographs, beside lossless codecs: the figures of their cards.

    python -m benchmarks.boxed_figures FOLDER [--model photographs_gray] [--bounds 10] [--strata 16]

Whole photographs have their code length and the files that codecs write of them; of some, a square of 128
pixels at a place drawn by a seed, whole and cut into 64×64, 32×32 and 16×16, has its code length and the
bound of the energy's own denoiser: the same pixels at every size. ± is one standard error over photographs.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dualscore
from dualscore.evaluation.codecs import CODECS
from dualscore.images import crops, in_channels, to_pixels
from dualscore.likelihood import Estimate, mean
from dualscore.model import ImageModel
from dualscore.pictures.photographs import read_rgb
from dualscore.scoring.image_files import find

SIDES = (16, 32, 64, 128)


def over(values: Sequence[float]) -> Estimate:
    """The mean over photographs, with its standard error."""
    return mean(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)))


def photographs(folder: Path, channels: int) -> list[Tensor]:
    """Photographs as a model sees them, uint8, (1, C, H, W) each."""
    found = []
    for path in find([folder], folder / "scores"):
        pixels = torch.from_numpy(np.asarray(read_rgb(path)).copy()).permute(2, 0, 1)[None]
        found.append(in_channels(pixels, channels))
    return found


def files(images: Sequence[Tensor]) -> dict[str, Estimate]:
    """Bits/dim of the files that codecs write of each photograph."""
    found = {}
    for label, encode in CODECS.values():
        sizes = []
        for image in images:
            picture = image[0].permute(1, 2, 0).numpy()
            picture = np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture)
            sizes.append(8.0 * len(encode(picture)) / image.numel())
        found[label] = over(sizes)
    return found


def gaps(model: ImageModel, squares: Tensor, side: int, strata: int) -> tuple[list[float], list[float]]:
    """Code lengths and bounds of squares (n, C, S, S) cut into pieces of a side, bits/dim, means of each."""
    bits, bounds = [], []
    for seed, square in enumerate(squares):
        pieces = square.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
        clean = to_pixels(pieces, len(square))
        bits.append(float(model.bits_per_dim(clean).double().mean()))
        bounds.append(float(model.bound(clean, strata, seed).mean()))
    return bits, bounds


def told(label: str, bits: Sequence[float], bounds: Sequence[float]) -> None:
    """Print a line of sizes."""
    apart = np.subtract(bounds, bits)
    rms = float(np.sqrt(np.mean(apart**2)))
    figures = f"{label:<10} {over(bits)!s:<16} {over(bounds)!s:<16}"
    print(f"{figures} {apart.mean():+.3f} in the mean, {rms:.3f} rms, {len(bits)} photographs", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="photographs")
    parser.add_argument(
        "--bounds", type=int, default=10, help="whole photographs that get a bound, 2 or more, or 0"
    )
    parser.add_argument("--strata", type=int, default=16)
    options = parser.parse_args()
    model = dualscore.load(options.model)
    assert model.image_shape is not None
    images = photographs(options.folder, model.image_shape[0])
    before = time.process_time()
    whole = [float(model.bits_per_dim(to_pixels(image, image.shape[1]))) for image in images]
    spent = (time.process_time() - before) / len(images)
    print(f"{options.model}, {len(images)} photographs, bits/dim")
    print(f"{'code length':<20} {over(whole)}  ({spent:.2f} s of processor time each)", flush=True)
    for label, estimate in files(images).items():
        print(f"{label:<20} {estimate}", flush=True)
    print("size       code length      bound            bound less code length")
    generator = torch.Generator().manual_seed(0)
    large = [image for image in images if min(image.shape[2:]) >= max(SIDES)][: options.bounds]
    squares = [crops(image, max(SIDES), generator) for image in large]
    for side in SIDES if squares else ():
        told(f"{side}×{side}", *gaps(model, torch.cat(squares), side, options.strata))
    some = [to_pixels(image, image.shape[1]) for image in images[: options.bounds]]
    if some:
        before = time.process_time()
        bounds = [float(model.bound(clean, options.strata)) for clean in some]
        spent = (time.process_time() - before) / len(some)
        told("whole", whole[: len(some)], bounds)
        print(f"a bound took {spent:.0f} s of processor time")


if __name__ == "__main__":
    main()
