r"""Figure 3: how log probabilities are distributed over images, and which images are where.

Images of one set differ by tens of decibels a dimension, with a long tail of simple, very probable ones,
which a Gumbel distribution describes: p(v) = exp(−s − e^(−s))/β with s = (v − location)/β.
Source: Guth et al. 2025, arXiv 2506.05310, figure 3, in its units. The fit is the one of
maximum likelihood: on the released energies it gives the published location and scale, the fit by moments
does not (its scale is 3.25 instead of 3.17).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from dualscore.errors import FigureError
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.files.plain_text import one_line
from dualscore.likelihood import bits_per_dim, decibels_per_dim
from dualscore.likelihood.units import LEVELS
from dualscore.measuring.subject import Rows
from dualscore.noise import MEASURING, seeded_generator

SHOWN = 11  # images in the strip, at evenly spaced quantiles of log p
NOISES = 64  # images of uniform noise that the mark is averaged over


@dataclass(frozen=True)
class Gumbel:
    """A Gumbel distribution of maxima, whose mode is its location."""

    location: float
    scale: float


@dataclass(frozen=True)
class Distribution:
    """Log probabilities of images; all figures but `bits` are of `decibels`."""

    decibels: Tensor  # log p of each image in dB/dim, float64, shape (n,)
    bits: Tensor  # the same as bits/dim on 256 levels, float64, shape (n,)
    median: float  # in dB/dim; between the middle two where n is even
    mean: float  # in dB/dim
    sd: float  # standard deviation over images, in dB/dim, unbiased
    gumbel: Gumbel  # fitted by maximum likelihood, in dB/dim


def distribution(energies: Tensor, dimension: int) -> Distribution:
    """Describe normalized energies −log p(x) in nats, shape (n,), of images of d = `dimension`.

    Log p is −10 U/(d ln 10) dB/dim and 8 + U/(d ln 2) bits/dim. Raises ValueError if there are fewer than
    two energies, all are the same, or some are not finite.
    """
    energies = energies.detach().double().cpu()
    if energies.ndim != 1 or len(energies) < 2:
        raise ValueError(f"a distribution needs 2 energies or more, got shape {tuple(energies.shape)}")
    if wrong := int((~energies.isfinite()).sum()):
        raise ValueError(f"{wrong} of {len(energies)} energies are not finite")
    if not math.isfinite(float(energies.square().sum())):
        raise ValueError("energies are too large to have a variance")
    if bool((energies == energies[0]).all()):
        raise ValueError(f"all {len(energies)} energies are the same: no distribution can be fitted")
    decibels = decibels_per_dim(-energies, dimension)
    location, scale = stats.gumbel_r.fit(decibels.numpy())
    return Distribution(
        decibels,
        bits_per_dim(energies, dimension),
        median=float(np.median(decibels.numpy())),
        mean=float(decibels.mean()),
        sd=float(decibels.std()),
        gumbel=Gumbel(float(location), float(scale)),
    )


def draw_histogram(trained: Trained) -> page.Drawn:
    """Figure 3 of a run's validation images; FigureError for a denoiser."""
    trained.need_energy("figure 3")
    rows = trained.validation
    found = distribution(rows["energy"] + trained.log_z.value, trained.dimension)
    numbers = _describe(found)
    numbers["log_normalizer"] = asdict(trained.log_z)
    if not trained.has_images:
        return page.Drawn(_histogram(found, numbers), numbers, credit=trained.credit)
    shape, cpu = trained.session.image_shape, torch.device("cpu")
    constants = _decibels(trained, "constants", lambda level: torch.full(shape, level), LEVELS)
    best = int(constants.argmax())
    numbers["best_constant"] = {"level": best, "decibels": float(constants[best])}

    def noise(number: int) -> Tensor:
        return torch.randint(LEVELS, shape, generator=seeded_generator(cpu, MEASURING, 0, number))

    noises = _decibels(trained, "uniform_noise", noise, NOISES)
    numbers["uniform_noise"] = {"decibels": float(noises.mean()), "images": NOISES}
    order = found.decibels.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, SHOWN).round().long()]
    images = trained.session.images(trained.session.reported, rows["position"][chosen].tolist())
    numbers["strip"] = {"decibels": found.decibels[chosen].tolist()}
    return page.Drawn(_histogram(found, numbers, images), numbers, credit=trained.credit)


def of_energies(path: Path, dimension: int) -> page.Drawn:
    """Figure 3 of a NumPy file of energies −log p(x) in nats, shape (n,), where d = `dimension`."""
    try:
        energies = np.load(path, allow_pickle=False)
        if not isinstance(energies, np.ndarray) or not np.issubdtype(energies.dtype, np.floating):
            raise ValueError("holds no array of floating-point numbers")
        found = distribution(torch.from_numpy(energies.astype(np.float64)), dimension)
    except (OSError, EOFError, ValueError, MemoryError, BadZipFile) as error:
        raise FigureError(f"{path}: {one_line(error):.200}") from error
    numbers = {"energies": str(path), "dimension": dimension, **_describe(found)}
    return page.Drawn(_histogram(found, numbers), numbers)


def _decibels(trained: Trained, name: str, image: Callable[[int], Tensor], count: int) -> Tensor:
    """Log p in dB/dim of images (C, H, W) given as grey levels by their number; kept under a name."""
    subject = trained.session.subject

    def measure(numbers: list[int]) -> Rows:
        pixels = torch.stack(list(map(image, numbers))).to(subject.prior.mean) / (LEVELS - 1)
        with torch.no_grad():
            return {"energy": subject.energy(pixels, torch.zeros_like(pixels[:, 0, 0, 0]))}

    return trained.decibels(trained.session.rows(name, count, measure, {})["energy"])


def _describe(found: Distribution) -> dict[str, Any]:
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


def _histogram(found: Distribution, numbers: dict[str, Any], images: Tensor | None = None) -> Figure:
    """The histogram with its Gumbel fit, marks for what else is known, and a strip of images below."""
    figure = Figure(figsize=(7.2, 2.6 if images is None else 3.4), layout="constrained")
    if images is None:
        axes = figure.subplots()
    else:
        figure.subfigures(2, 1, height_ratios=(2.4, 1.0))
        upper, lower = figure.subfigs
        axes = upper.subplots()
        labels = numbers["strip"]["decibels"]
        for axis, image, label in zip(lower.subplots(1, len(images)), images, labels, strict=True):
            page.show(axis, image)
            axis.set_xlabel(f"{label:.2f}", fontsize=7)
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
    return figure


def _mark(axes: Axes, value: float, colour: str, label: str) -> None:
    """A line; where it is far from everything else, an arrow towards it at the edge."""
    low, high = axes.get_xlim()
    if low < value < high:
        axes.axvline(value, color=colour, lw=1.4, label=label)
        return
    edge, marker = (0.0, "<") if value <= low else (1.0, ">")
    axes.plot(
        [edge], [0.5], marker=marker, color=colour, ls="", ms=7, label=label, clip_on=False,
        transform=axes.transAxes,
    )  # fmt: skip
