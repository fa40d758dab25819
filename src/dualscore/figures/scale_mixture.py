"""Figure 1: energy and score of the scale mixture, by dual and single score matching, against the truth."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualscore.densities import GaussianMixture, scale_mixture
from dualscore.energy import EnergyModel
from dualscore.errors import FigureError
from dualscore.figures import page
from dualscore.likelihood import decibels_per_dim
from dualscore.model import ImageModel
from dualscore.model_files.loading import load
from dualscore.noise import MEASURING, corrupt, seeded_generator
from dualscore.runs.folder import newest_run

RUNS = {"dual": "scale_mixture_dual", "single": "scale_mixture_single"}
COLOURS = {"dual": page.DUAL, "single": page.SINGLE}
SAMPLES = 4096
RADII = 400
NOISE_LEVELS = 41
Normalized = tuple[EnergyModel, float]
"""An energy and its log Z."""


def draw_scale_mixture(runs: Path, out: Path) -> list[Path]:
    """Draw figure 1 from the newest runs in `runs` of scale_mixture_dual and scale_mixture_single."""
    models = {name: _trained(experiment, runs) for name, experiment in RUNS.items()}
    shape = models["dual"].image_shape
    assert shape is not None
    density = scale_mixture(shape)
    generator = seeded_generator(torch.device("cpu"), MEASURING, 0)
    clean = density.sample(SAMPLES, generator)
    noise = torch.randn(clean.shape, generator=generator)
    normalized = {name: _normalized(model) for name, model in models.items()}
    curves = _radial_curves(normalized, density, clean)
    errors = _energy_errors(normalized, density, clean, noise, models["dual"].t_max)
    with page.style():
        figure, axes = page.panels(3)
        _draw_curves(axes[:2], curves)
        for name, values in errors["largest_error_db_per_dim"].items():
            axes[2].loglog(errors["noise_variance"], values, color=COLOURS[name], label=name)
        axes[2].set(xlabel="noise variance t", ylabel="dB/dim", title="largest energy error")
        axes[2].set_ylim(min(1e-3, *axes[2].get_ylim()), max(10.0, *axes[2].get_ylim()))
        axes[2].legend(loc="lower left")
        return page.write(figure, {**curves, **errors}, out, "figure1")


def _trained(experiment: str, runs: Path) -> ImageModel:
    path = newest_run(experiment, runs).best
    if not path.exists():
        raise FigureError(
            f"figure 1 needs a run of {experiment}, and there is no {path}: dualscore train {experiment}"
        )
    return load(path)


def _normalized(model: ImageModel) -> Normalized:
    assert isinstance(model.score_model, EnergyModel)
    assert model.log_normalizer is not None
    return model.score_model, model.log_normalizer


def _radial_curves(models: dict[str, Normalized], density: GaussianMixture, clean: Tensor) -> dict[str, Any]:
    """Energy and radial score along a ray, at t = 0, for radii ‖x‖/√d around those of the data."""
    dimension = clean[0].numel()
    data = (clean.flatten(1).square().mean(dim=1)).sqrt()
    radius = torch.linspace(0.5 * float(data.min()), 1.25 * float(data.max()), RADII)
    direction = clean[:1] / data[0]
    points = radius[:, None, None, None] * direction
    t = torch.zeros(RADII)
    energies, scores = {}, {}
    truth: dict[str, Normalized] = {"truth": (density, 0.0)}
    for name, (energy, log_z) in (truth | models).items():
        with torch.no_grad():
            values = energy(points, t) + log_z
            gradient = energy.gradients(points, t, time=False).image
        energies[name] = [decibels_per_dim(float(value), dimension) for value in values]
        scores[name] = (-(gradient * direction).sum(dim=(1, 2, 3)) / dimension).tolist()
    counts, edges = torch.histogram(data, bins=80, range=(float(radius[0]), float(radius[-1])))
    return {
        "radius": radius.tolist(),
        "energy_db_per_dim": energies,
        "radial_score": scores,
        "data_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _energy_errors(
    models: dict[str, Normalized], density: GaussianMixture, clean: Tensor, noise: Tensor, t_max: float
) -> dict[str, Any]:
    """The largest |U + log Z − U_true| over samples at each noise level, and over all."""
    dimension = clean[0].numel()
    levels = torch.logspace(math.log10(1e-2), math.log10(t_max), NOISE_LEVELS).tolist()
    largest: dict[str, list[float]] = {name: [] for name in models}
    for level in [0.0, *levels]:
        t = torch.full((len(clean),), level)
        noisy = corrupt(clean, noise, t)
        with torch.no_grad():
            truth = density(noisy, t)
            for name, (energy, log_z) in models.items():
                error = (energy(noisy, t) + log_z - truth).abs().max()
                largest[name].append(decibels_per_dim(float(error), dimension))
    return {
        "noise_variance": levels,
        "largest_error_db_per_dim": {name: values[1:] for name, values in largest.items()},
        "largest_error_over_all_db_per_dim": {name: max(values) for name, values in largest.items()},
    }


def _draw_curves(axes: list[Any], curves: dict[str, Any]) -> None:
    edges, counts = curves["data_histogram"]["edges"], curves["data_histogram"]["counts"]
    styles = {"truth": {"color": page.TRUTH, "linestyle": "--", "zorder": 3}}
    styles |= {name: {"color": colour} for name, colour in COLOURS.items()}
    for axis, key, title, unit in (
        (axes[0], "energy_db_per_dim", "energy at t = 0", "dB/dim"),
        (axes[1], "radial_score", "radial score at t = 0", "per dimension"),
    ):
        for name, style in styles.items():
            axis.plot(curves["radius"], curves[key][name], label=name, **style)
        behind = axis.twinx()
        behind.stairs(counts, edges, fill=True, color=page.DATA, alpha=0.6)
        behind.set_axis_off()
        axis.set_zorder(behind.get_zorder() + 1)
        axis.patch.set_visible(False)
        axis.set(xlabel="‖x‖ / √d", ylabel=unit, title=title)
    axes[1].legend(title="grey: data", loc="center right")
