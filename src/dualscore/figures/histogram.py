"""Figure 3: how log probabilities are distributed over images, and which images are where."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from dualscore.errors import FigureError
from dualscore.figures import page
from dualscore.figures.distribution import Distribution, distribution
from dualscore.figures.trained import Trained
from dualscore.likelihood.units import LEVELS
from dualscore.measuring.subject import Rows
from dualscore.noise import MEASURING, seeded_generator

SHOWN = 11
"""Images in the strip, at evenly spaced quantiles of log p."""
NOISES = 64
"""Images of uniform noise that the mark is averaged over."""


def draw_histogram(trained: Trained, out: Path) -> list[Path]:
    """Draw figure 3 of a run's validation images; FigureError for a denoiser."""
    trained.need_energy("figure 3")
    rows = trained.validation
    found = distribution(rows["energy"] + trained.log_z.value, trained.dimension)
    numbers = describe(found)
    numbers["log_normalizer"] = asdict(trained.log_z)
    strip: tuple[Tensor, Tensor] | None = None
    if trained.has_images:
        constants = _decibels(trained, "constants", LEVELS, _constant)
        best = int(constants.argmax())
        numbers["best_constant"] = {"level": best, "decibels": float(constants[best])}
        noises = _decibels(trained, "uniform_noise", NOISES, _noise)
        numbers["uniform_noise"] = {"decibels": float(noises.mean()), "images": NOISES}
        strip = _strip(trained, rows, found.decibels)
        numbers["strip"] = {"decibels": strip[1].tolist()}
    with page.style():
        figure, axes = page.with_strip(strip is not None)
        plot_histogram(axes, found, numbers)
        if strip is not None:
            page.draw_strip(figure, strip[0], [f"{value:.2f}" for value in strip[1].tolist()])
        return page.write(figure, numbers, out, "figure3", credit=trained.credit)


def draw_energies(path: Path, dimension: int, out: Path) -> list[Path]:
    """Draw figure 3 of a NumPy file of energies −log p(x) in nats, shape (n,), where d = `dimension`."""
    try:
        energies = np.load(path, allow_pickle=False)
        if not isinstance(energies, np.ndarray) or not np.issubdtype(energies.dtype, np.floating):
            raise ValueError("holds no array of floating-point numbers")
        found = distribution(torch.from_numpy(energies.astype(np.float64)), dimension)
    except (OSError, EOFError, ValueError, MemoryError, BadZipFile) as error:
        raise FigureError(f"{path}: {' '.join(str(error).split()):.200}") from error
    numbers = {"energies": str(path), "dimension": dimension, **describe(found)}
    with page.style():
        figure, axes = page.with_strip(strip=False)
        plot_histogram(axes, found, numbers)
        return page.write(figure, numbers, out, "figure3")


def describe(found: Distribution) -> dict[str, Any]:
    """The numbers of a distribution, as plain values; log p in dB/dim."""
    counts, edges = np.histogram(found.decibels.numpy(), bins=80)
    return {
        "unit": "dB/dim",
        "images": len(found.decibels),
        "median": found.median,
        "mean": found.mean,
        "sd": found.sd,
        "min": float(found.decibels.min()),
        "max": float(found.decibels.max()),
        "gumbel": asdict(found.gumbel),
        "above_probability_1": float((found.bits < 0.0).double().mean()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def plot_histogram(axes: Axes, found: Distribution, numbers: dict[str, Any]) -> None:
    """The histogram with its Gumbel fit, and marks for the constant image and the noise, if known."""
    edges, counts = np.array(numbers["histogram"]["edges"]), np.array(numbers["histogram"]["counts"])
    density = counts / counts.sum() / np.diff(edges)
    axes.stairs(density, edges, fill=True, color=page.DATA, label=f"{numbers['images']:,} images")
    grid = np.linspace(edges[0], edges[-1], 400)
    location, scale = found.gumbel.location, found.gumbel.scale
    fitted = stats.gumbel_r.pdf(grid, location, scale)
    axes.plot(grid, fitted, color=page.DUAL, label=f"Gumbel, location {location:.2f}, scale {scale:.2f}")
    middle = f"median {found.median:.2f}, mean {found.mean:.2f}, sd {found.sd:.2f}"
    axes.axvline(found.median, color=page.TRUTH, lw=0.8, ls="--", label=middle)
    reach = 0.25 * (edges[-1] - edges[0])
    axes.set_xlim(edges[0] - reach, edges[-1] + reach)
    for key, colour, label in (
        ("uniform_noise", page.SINGLE, "uniform noise"),
        ("best_constant", page.CONSTANT, "best constant image"),
    ):
        if key in numbers:
            value = numbers[key]["decibels"]
            _mark(axes, value, colour, f"{label} {value:.2f}")
    axes.set(xlabel="log p, dB/dim", ylabel="density", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.figure.legend(loc="outside right upper")


def _mark(axes: Axes, value: float, colour: str, label: str) -> None:
    """A line; where it is far from everything else, an arrow towards it at the edge."""
    low, high = axes.get_xlim()
    if low < value < high:
        axes.axvline(value, color=colour, lw=1.4, label=label)
        return
    edge = 0.0 if value <= low else 1.0
    marker = "<" if value <= low else ">"
    axes.plot(
        [edge], [0.5], marker=marker, color=colour, ls="", ms=7, label=label, clip_on=False,
        transform=axes.transAxes,
    )  # fmt: skip


def _constant(level: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.full(shape, level)


def _noise(number: int, shape: tuple[int, int, int]) -> Tensor:
    generator = seeded_generator(torch.device("cpu"), MEASURING, 0, number)
    return torch.randint(LEVELS, shape, generator=generator)


def _decibels(
    trained: Trained, name: str, count: int, image: Callable[[int, tuple[int, int, int]], Tensor]
) -> Tensor:
    """Log p in dB/dim of images given by their number and shape as grey levels; kept under a name."""
    subject = trained.session.subject

    def measure(numbers: list[int]) -> Rows:
        levels = torch.stack([image(number, trained.opened.image_shape) for number in numbers])
        pixels = levels.to(subject.prior.mean) / (LEVELS - 1)
        with torch.no_grad():
            return {"energy": subject.energy(pixels, torch.zeros_like(pixels[:, 0, 0, 0]))}

    return trained.decibels(trained.session.rows(name, count, measure, {})["energy"])


def _strip(trained: Trained, rows: Rows, decibels: Tensor) -> tuple[Tensor, Tensor]:
    """Images at evenly spaced quantiles of log p, the least probable first, and their log p."""
    order = decibels.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, SHOWN).round().long()]
    positions = rows["position"][chosen].tolist()
    return trained.session.images(trained.session.reported, positions), decibels[chosen]
