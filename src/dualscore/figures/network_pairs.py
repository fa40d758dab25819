"""Figures 1 and 2: two networks side by side, trained by two objectives or on disjoint images."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dualscore.dashboard import published
from dualscore.densities import GaussianMixture, scale_mixture
from dualscore.energy import EnergyModel
from dualscore.errors import ConfigError, FigureError
from dualscore.evaluation.session import open_checkpoint
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.likelihood import decibels_per_dim, mean
from dualscore.measuring.row_figures import plain
from dualscore.measuring.subject import Rows, joined
from dualscore.model import ImageModel
from dualscore.model_files.loading import load
from dualscore.noise import MEASURING, corrupt, seeded_generator
from dualscore.runs.folder import Run, differences, flatten, newest_run

OBJECTIVES = {"dual": page.DUAL, "single": page.SINGLE}  # of figure 1's two networks, and their colours
SAMPLES = 4096
RADII = 400
NOISE_LEVELS = 41
SETS = {
    "A": ("A's images", page.DUAL),
    "B": ("B's images", page.SINGLE),
    "held out": ("held-out images", page.TRUTH),
}  # of figure 2: whose images, what they are called, and their colour
Normalized = tuple[EnergyModel, float]  # an energy and its log Z
Pair = tuple[Trained, Trained]  # two runs, A and B, of one experiment on disjoint training images


def draw_scale_mixture(trained: Trained) -> page.Drawn:
    """Figure 1, from the newest runs of scale_mixture_dual and scale_mixture_single beside this one."""
    found = {name: _newest(f"scale_mixture_{name}", trained.folder.parent) for name in OBJECTIVES}
    model, models = found["dual"][0], {name: normalized for name, (_, normalized) in found.items()}
    assert model.image_shape is not None
    density = scale_mixture(model.image_shape)
    generator = seeded_generator(torch.device("cpu"), MEASURING, 0)
    clean = density.sample(SAMPLES, generator)
    noise = torch.randn(clean.shape, generator=generator)
    curves = _radial_curves({"truth": (density, 0.0), **models}, clean)
    errors = _energy_errors(models, density, clean, noise, model.t_max)
    figure, axes = page.panels(3)
    _draw_curves(axes[:2], curves)
    for name, values in errors["largest_error_db_per_dim"].items():
        axes[2].loglog(errors["noise_variance"], values, color=OBJECTIVES[name], label=name)
    axes[2].set(xlabel="noise variance t", ylabel="dB/dim", title="largest energy error")
    axes[2].set_ylim(min(1e-3, *axes[2].get_ylim()), max(10.0, *axes[2].get_ylim()))
    axes[2].legend(loc="lower left")
    return page.Drawn(figure, curves | errors)


def _newest(experiment: str, runs: Path) -> tuple[ImageModel, Normalized]:
    path = newest_run(experiment, runs).best
    if not path.exists():
        raise FigureError(
            f"figure 1 needs a run of {experiment}, and there is no {path}: dualscore train {experiment}"
        )
    model = load(path)
    assert isinstance(model.score_model, EnergyModel)
    assert model.log_normalizer is not None
    return model, (model.score_model, model.log_normalizer)


def _radial_curves(models: dict[str, Normalized], clean: Tensor) -> dict[str, Any]:
    """Energy and radial score along a ray, at t = 0, for radii ‖x‖/√d around those of the data."""
    dimension = clean[0].numel()
    data = (clean.flatten(1).square().mean(dim=1)).sqrt()
    radius = torch.linspace(0.5 * float(data.min()), 1.25 * float(data.max()), RADII)
    direction = clean[:1] / data[0]
    points, t = radius[:, None, None, None] * direction, torch.zeros(RADII)
    energies, scores = {}, {}
    for name, (energy, log_z) in models.items():
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


def _draw_curves(axes: Sequence[Any], curves: dict[str, Any]) -> None:
    histogram = curves["data_histogram"]
    styles = {"truth": {"color": page.TRUTH, "linestyle": "--", "zorder": 3}}
    styles |= {name: {"color": colour} for name, colour in OBJECTIVES.items()}
    for axis, key, title, unit in (
        (axes[0], "energy_db_per_dim", "energy at t = 0", "dB/dim"),
        (axes[1], "radial_score", "radial score at t = 0", "per dimension"),
    ):
        for name, style in styles.items():
            axis.plot(curves["radius"], curves[key][name], label=name, **style)
        behind = axis.twinx()
        behind.stairs(histogram["counts"], histogram["edges"], fill=True, color=page.DATA, alpha=0.6)
        behind.set_axis_off()
        axis.set_zorder(behind.get_zorder() + 1)
        axis.patch.set_visible(False)
        axis.set(xlabel="‖x‖ / √d", ylabel=unit, title=title)
    axes[1].legend(title="grey: data", loc="center right")


def draw_generalization(trained: Trained) -> page.Drawn:
    """Figure 2: of a run and the other one named, or of all pairs of its experiment's halves beside it.

    Raises FigureError if the model is a denoiser, there is no pair, or the two cannot be compared.
    """
    trained.need_energy("figure 2")
    pairs = _halves(trained) if trained.other is None else [(trained, _open_other(trained, trained.other))]
    if not pairs:
        raise FigureError(
            f"figure 2 needs two networks on disjoint images: dualscore figures {trained.folder} --other …, "
            "or a sweep over data.half (sweeps/generalization.yaml)"
        )
    found = sorted(map(_compare, pairs), key=lambda pair: pair["training_images"])
    theirs = {str(n): dict(zip("AB", values, strict=True)) for n, values in published.GENERALIZATION.items()}
    figure, axes = page.panels(len(found[-3:]) + 1, legend=True)
    for axis, pair in zip(axes, found[-3:], strict=False):
        _scatter(axis, pair)
    _against_size(axes[-1], found)
    numbers = {"unit": "dB/dim", "pairs": found, "published": theirs}
    return page.Drawn(figure, numbers, credit=trained.credit)


def _open_other(trained: Trained, folder: Path) -> Trained:
    """Open a second run; FigureError if it cannot be compared with the first."""
    second = replace(trained, folder=folder)
    second.need_energy("figure 2")
    if second.session.image_shape != trained.session.image_shape:
        raise FigureError(
            f"{folder}: its images are {second.session.image_shape}, those of {trained.folder} "
            f"{trained.session.image_shape}: their likelihoods cannot be compared"
        )
    if second.session.digest == trained.session.digest:
        raise FigureError(f"{folder}: is the same network as {trained.folder}")
    if second.session.datamodule.identity == trained.session.datamodule.identity:
        raise FigureError(f"{folder}: was trained on the same images as {trained.folder}")
    return second


def _halves(trained: Trained) -> list[Pair]:
    """Pairs among the runs beside one: of its experiment, equal in all settings but the half."""
    halves: dict[str, dict[Path, dict[str, Any]]] = {"A": {}, "B": {}}
    for folder in sorted(trained.folder.parent.iterdir()):
        run = Run(folder)
        with contextlib.suppress(ConfigError):
            config = run.read_config() if run.best.is_file() and run.config_file.is_file() else {}
            flat = flatten(config)
            if flat.get("name") == trained.config.name and flat.get("data.half") in halves:
                halves[flat["data.half"]][folder] = config
    found = []
    for first, config in halves["A"].items():
        same = [f for f, c in halves["B"].items() if set(differences(config, c)) <= {"data.half", "name"}]
        if same:
            newest = max(same, key=lambda folder: folder.stat().st_mtime)
            found.append((replace(trained, folder=first), replace(trained, folder=newest)))
    return found


def _compare(pair: Pair) -> dict[str, Any]:
    """Figures of a pair, with log p by A and by B of each image of each set."""
    sets = {}
    for name, owner, split in (("A", pair[0], "train"), ("B", pair[1], "train"), ("held out", pair[0], "")):
        first, second = (_energies(side, owner, split) for side in pair)
        i, j = joined(first, second)
        a, b = pair[0].decibels(first["energy"][i]), pair[1].decibels(second["energy"][j])
        images = owner.session.datamodule
        photographs = images.photographs(split or images.reported, first["position"][i])
        difference = mean((a - b).abs(), photographs)
        sets[name] = {
            "images": len(a),
            "mean_absolute_difference": difference.value,
            "stderr": plain(difference)["stderr"],
            "mean_difference": float((a - b).mean()),
            "pearson": float(np.corrcoef(a.numpy(), b.numpy())[0, 1]),
            "spearman": float(stats.spearmanr(a.numpy(), b.numpy()).statistic),
            "sd_over_images": float(a.std()),
            "log_p_a": a.tolist(),
            "log_p_b": b.tolist(),
        }
    runs = {name: str(side.folder) for name, side in zip("ab", pair, strict=True)}
    smaller = min(side.session.datamodule.counts["train"] for side in pair)
    return {"runs": runs, "training_images": smaller, "sets": sets}


def _energies(network: Trained, owner: Trained, split: str) -> Rows:
    """U(x, 0) by one network of a split of a run's images."""
    stage = owner.stages["train_paper" if split == "train" else "paper"]
    if network.folder == owner.folder:
        return network.session.run(stage)
    config = replace(network.config, data=owner.config.data, evaluate=owner.config.evaluate)
    folder = network.folder / "evaluation"
    return open_checkpoint(config, network.checkpoint, folder, network.console).run(stage)


def _scatter(axis: Any, pair: dict[str, Any]) -> None:  # noqa: ANN401
    for name, (label, colour) in SETS.items():
        found = pair["sets"][name]
        axis.scatter(
            found["log_p_a"], found["log_p_b"], s=3, lw=0, alpha=0.35, color=colour, rasterized=True,
            label=f"{label}: {found['mean_absolute_difference']:.2f}",
        )  # fmt: skip
    low, _ = axis.get_xlim()
    axis.axline((low, low), slope=1.0, color="gray", lw=0.6, zorder=0)
    title = f"N = {pair['training_images']:,}"
    axis.set(xlabel="log $p_A$, dB/dim", ylabel="log $p_B$, dB/dim", title=title)
    axis.legend(
        title="mean |log $p_A$ − log $p_B$|", markerscale=3, loc="lower right", fontsize=7, title_fontsize=7
    )


def _against_size(axis: Any, pairs: list[dict[str, Any]]) -> None:  # noqa: ANN401
    sizes = list(published.GENERALIZATION)
    for place, name in enumerate("AB"):
        label, colour = SETS[name]
        theirs = [published.GENERALIZATION[n][place] for n in sizes]
        axis.loglog(sizes, theirs, color=colour, lw=0.8, ls="--", marker=".", label=f"published, {label}")
    sizes = [pair["training_images"] for pair in pairs]
    for name, (label, colour) in SETS.items():
        ours = [pair["sets"][name]["mean_absolute_difference"] for pair in pairs]
        axis.loglog(sizes, ours, color=colour, marker="o", ms=4, label=f"ours, {label}")
    axis.set(xlabel="training images N of each network", ylabel="mean |log $p_A$ − log $p_B$|, dB/dim")
    axis.figure.legend(*axis.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
