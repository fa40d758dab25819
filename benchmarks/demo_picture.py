"""Draws the README's picture of the demo's run, for light and dark pages.

python benchmarks/demo_picture.py [--model runs/patches_dual] [--out docs]
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import dualscore
from data_prep.sources.demo import VAL, locate
from dualscore.images import to_pixels
from dualscore.noise import variance_at_psnr
from dualscore.pictures.photographs import read_rgb
from dualscore.sampling import sample
from dualscore.terminal.any_terminal import fit_any_terminal

THEMES = {"demo": ("#ffffff", "#1f2328"), "demo-dark": ("#0d1117", "#e6edf3")}
"""Files, and the colours of GitHub's pages and letters."""
COLUMNS, STRIDE, NOISE_DB = 12, 3, 20.0
COLOURS = "magma"
ROWS = {
    "patches": "Patches of it, from the most to the least probable, bits/dim",
    "noisy": f"The same with noise at {NOISE_DB:g} dB",
    "denoised": "Denoised by the energy's gradient, x̂ = y − t ∇U",
    "samples": "New patches, drawn from the energy",
}
GAP, TITLE = 0.14, 0.3
"""Inches between pictures, and of a line of text above them."""


def windows(photograph: Tensor, side: int, stride: int) -> Tensor:
    """Overlapping crops of a photograph, (C, H, W) → (rows, columns, C, side, side)."""
    return photograph.unfold(1, side, stride).unfold(2, side, stride).permute(1, 2, 0, 3, 4)


def place(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes without ticks and frame, in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def draw(measured: dict[str, Tensor], side: int) -> Figure:
    """The whole picture, in the colours that matplotlib is set to.

    Args:
        measured: what `measure` gave.
        side: of a patch, in pixels.

    Returns:
        The figure.
    """
    rows, columns = measured["map"].shape
    # Both are cut to where patches have their centres.
    edges = (side - STRIDE) / 2 + STRIDE * torch.tensor([0.0, columns, 0.0, rows])
    left, right, top, bottom = edges.tolist()
    wide = 4.2
    high = wide * (bottom - top) / (right - left)
    step = (2 * wide + 1.5 * GAP) / COLUMNS
    thumb = step - GAP / 2
    figure = Figure(figsize=(2 * wide + 4 * GAP + 0.45, TITLE + high + 4 * (thumb + TITLE) + 3 * GAP))
    photograph = place(figure, GAP, TITLE, wide, high)
    photograph.imshow(measured["photograph"][0].numpy(), cmap="gray", vmin=0, vmax=1)
    photograph.set_title("A photograph that the network never saw", loc="left")
    heat = place(figure, wide + 2 * GAP, TITLE, wide, high)
    shown = heat.imshow(
        measured["map"].numpy(), COLOURS, extent=(left, right, bottom, top), interpolation="bilinear"
    )
    heat.set_title("−log p of each 16×16 patch around a pixel, bits/dim", loc="left")
    for axes in (photograph, heat):
        axes.set(xlim=(left, right), ylim=(bottom, top))
    bar = figure.colorbar(shown, place(figure, 2 * wide + 2.7 * GAP, TITLE, 0.13, high))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    y = TITLE + high
    for key, title in ROWS.items():
        y += TITLE
        for column, image in enumerate(measured[key]):
            axes = place(figure, GAP + column * step, y, thumb, thumb)
            axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if column == 0:
                axes.set_title(title, loc="left")
            if key == "patches":
                axes.set_xlabel(f"{float(measured['bits'][column]):.2f}", labelpad=3)
        y += thumb + (GAP if key == "patches" else 0)
    return figure


def few_colours(path: Path, page: str, letters: str) -> None:
    """Keep grays, one scale and a page's two colours: a third of the bytes."""
    scale = (np.array(mpl.colormaps[COLOURS](np.linspace(0, 1, 104)))[:, :3] * 255).round().astype(np.uint8)
    grays = np.linspace(0, 255, 150).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    both = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (page, letters)]
    palette = np.concatenate([both, grays, scale]).astype(np.uint8)
    with Image.open(path) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    colours, where = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    apart = ((colours[:, None].astype(int) - palette[None].astype(int)) ** 2).sum(axis=2)
    few = Image.fromarray(apart.argmin(axis=1).astype(np.uint8)[where].reshape(pixels.shape[:2]), "P")
    few.putpalette(palette.tobytes())
    few.save(path, optimize=True)


def measure(model: dualscore.ImageModel, file: Path) -> dict[str, Tensor]:
    """All that is drawn.

    Args:
        model: of gray patches.
        file: a photograph.

    Returns:
        Pixels in [0, 1], and bits/dim.
    """
    assert model.image_shape is not None
    side = model.image_shape[-1]
    stored = torch.from_numpy(np.array(read_rgb(file))).permute(2, 0, 1)
    photograph = to_pixels(stored[None], 1)[0]
    grid = windows(photograph, side, STRIDE)
    every = model.bits_per_dim(grid.flatten(0, 1))
    apart = grid[:: side // STRIDE + 1, :: side // STRIDE + 1].flatten(0, 1)  # that do not overlap
    found = model.bits_per_dim(apart)
    chosen = found.argsort()[torch.linspace(0, len(found) - 1, COLUMNS).round().long()]
    generator = torch.Generator().manual_seed(0)
    t = variance_at_psnr(NOISE_DB)
    patches = apart[chosen]
    noisy = patches + t**0.5 * torch.randn(patches.shape, generator=generator)
    return {
        "photograph": photograph,
        "map": every.view(grid.shape[:2]),
        "patches": patches,
        "bits": found[chosen],
        "noisy": noisy,
        "denoised": model.denoise(noisy, t),
        "samples": sample(model, COLUMNS).images,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure once, draw for light and for dark pages."""
    fit_any_terminal()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/patches_dual"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    model = dualscore.load(arguments.model)
    measured = measure(model, locate(*VAL["chelsea"]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, (page, letters) in THEMES.items():
        colours = {
            "figure.facecolor": page,
            "text.color": letters,
            "font.size": 9,
            "axes.titlesize": 9.5,
            **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), letters),
        }
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(colours)
            figure = draw(measured, measured["patches"].shape[-1])
            path = arguments.out / f"{name}.png"
            figure.savefig(path, dpi=130)
        few_colours(path, page, letters)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
