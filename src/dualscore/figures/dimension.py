"""Figure 5: energy and effective dimension against the noise variance, of chosen images and on average."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.likelihood import decibels_per_dim, noise_entropy
from dualscore.measuring.quantities import noise_levels
from dualscore.measuring.subject import Images, Rows
from dualscore.noise import corrupt, fixed_noise
from dualscore.objective import space_loss

LEVELS = 33
QUANTILES = (0.05, 0.35, 0.65, 0.95)
"""Of log p: which images have curves of their own."""
DRAWS = 8
"""Noises that such a curve is averaged over."""
AVERAGED = 256
"""Images that the mean curve is averaged over, at most."""


def draw_dimension(trained: Trained, out: Path) -> list[Path]:
    """Draw figure 5 of a run's validation images; FigureError for a denoiser."""
    trained.need_energy("figure 5")
    session, d = trained.session, trained.dimension
    t_min, t_max = session.subject.t_range
    levels = torch.logspace(math.log10(t_min), math.log10(t_max), LEVELS, dtype=torch.float64).tolist()
    count = min(AVERAGED, trained.extent.subset)
    average = session.run(noise_levels(levels, session.reported, count))
    positions = trained.at_quantiles(QUANTILES)
    images = session.images(session.reported, positions)
    as_trained = Images(images, positions).as_trained(session.subject)
    own = _profiles(trained, as_trained, positions, levels)
    curves = zip(positions, QUANTILES, own["energy"], own["space"], strict=True)
    spectrum = session.subject.prior.eigenvalues.double().cpu()
    numbers: dict[str, Any] = {
        "noise_variance": levels,
        "mean": {
            "images": count,
            "log_p_db_per_dim": trained.decibels(average["energy"]).mean(dim=0).tolist(),
            "effective_dimension": (d * average["space"]).mean(dim=0).tolist(),
            "effective_dimension_sd_over_images": (d * average["space"]).std(dim=0).tolist(),
        },
        "images": [
            {
                "position": position,
                "quantile": quantile,
                "log_p_db_per_dim": trained.decibels(energy).tolist(),
                "effective_dimension": (d * space).tolist(),
            }
            for position, quantile, energy, space in curves
        ],
        "gaussian_effective_dimension": [float((spectrum / (spectrum + t)).sum()) for t in levels],
        "noise_log_p_db_per_dim": [-decibels_per_dim(noise_entropy(d, t), d) for t in levels],
    }
    with page.style():
        figure, axes = page.panels(2, legend=True)
        _plot(axes, numbers, images if trained.has_images else None)
        return page.write(figure, numbers, out, "figure5", credit=trained.credit)


def _profiles(trained: Trained, images: Tensor, positions: list[int], levels: list[float]) -> Rows:
    """U(y, t) and the space loss d_eff/d at each level, means over draws, shape (images, levels)."""
    subject = trained.session.subject

    def measure(numbers: list[int]) -> Rows:
        energies, losses = [], []
        for number in numbers:
            image, level = images[number // len(levels)], levels[number % len(levels)]
            keys = [positions[number // len(levels)]]
            shape = trained.opened.image_shape
            noise = torch.cat([fixed_noise(keys, shape, subject.seed, draw) for draw in range(DRAWS)])
            clean, noise = image.expand(DRAWS, *shape), noise.to(image)
            t = torch.full((DRAWS,), level).to(image)
            with torch.no_grad():
                found = subject.energy.gradients(corrupt(clean, noise, t), t, time=False)
                losses.append(space_loss(found.image, noise, t).mean())
            assert found.energy is not None
            energies.append(found.energy.mean())
        return {"energy": torch.stack(energies), "space": torch.stack(losses)}

    settings = {"positions": positions, "levels": levels, "draws": DRAWS, "as_trained": subject.dequantize}
    rows = trained.session.rows("profiles", len(images) * len(levels), measure, settings)
    return {name: values.reshape(len(images), len(levels)) for name, values in rows.items()}


def _plot(axes: list[Any], numbers: dict[str, Any], images: Tensor | None) -> None:
    t = numbers["noise_variance"]
    for axis, key, label, title in (
        (axes[0], "log_p_db_per_dim", "log p(y | t), dB/dim", "log probability"),
        (axes[1], "effective_dimension", "d_eff", "effective dimension"),
    ):
        for image, colour in zip(numbers["images"], page.SERIES, strict=True):
            axis.plot(t, image[key], color=colour, lw=1.0, label=f"{image['quantile']:.0%} quantile")
        axis.plot(t, numbers["mean"][key], color=page.TRUTH, lw=1.6, label="mean")
        axis.set(xscale="log", xlabel="noise variance t", ylabel=label, title=title)
    axes[0].plot(t, numbers["noise_log_p_db_per_dim"], color="gray", ls=":", label="noise alone")
    axes[1].plot(t, numbers["gaussian_effective_dimension"], color="gray", ls="--", label="best Gaussian")
    axes[1].set_yscale("log")
    handles = [*axes[0].get_legend_handles_labels()[0], axes[1].lines[-1]]
    axes[0].figure.legend(handles=handles, loc="outside right upper")
    if images is not None:
        for place, image in enumerate(images):
            page.inset(axes[0], image, place, page.SERIES[place])
