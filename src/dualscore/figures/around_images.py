"""Figures 4 and 5: log p around chosen images, over contrast and brightness, and over the noise level."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pywt
import torch
from scipy import stats
from torch import Tensor

from dualscore.errors import FigureError
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.likelihood import decibels_per_dim, noise_entropy
from dualscore.likelihood.units import STEP
from dualscore.measuring.quantities import noise_levels
from dualscore.measuring.subject import Images, Rows, Stage, Subject, joined
from dualscore.noise import corrupt, fixed_noise
from dualscore.objective import space_loss

VARIED = (0.1, 0.5, 0.9)  # quantiles of log p: which images figure 4 varies
CONTRASTS = torch.linspace(0.0, 2.0, 25, dtype=torch.float64)  # a in a·(x − x̄) + b; 1 is the image's own
BRIGHTNESSES = torch.linspace(0.0, 1.0, 25, dtype=torch.float64)  # b, the mean of the result
FOLLOWED = (0.05, 0.35, 0.65, 0.95)  # quantiles of log p: which images have curves of their own in figure 5
LEVELS = 33  # noise levels of a curve
DRAWS = 8  # noises that an image's own curve is averaged over
AVERAGED = 256  # images that the mean curve is averaged over, at most


def _pairs(
    trained: Trained,
    name: str,
    size: tuple[int, int],
    measure: Callable[[int, int], Rows],
    settings: dict[str, Any],
) -> Rows:
    """Rows of every pair of numbers below `size`, each measured once and kept under a name, (*size, …)."""

    def several(numbers: list[int]) -> Rows:
        with torch.no_grad():
            found = [measure(*divmod(number, size[1])) for number in numbers]
        return {key: torch.stack([rows[key] for rows in found]) for key in found[0]}

    rows = trained.session.rows(name, size[0] * size[1], several, settings)
    return {key: values.reshape(*size, *values.shape[1:]) for key, values in rows.items()}


def draw_slices(trained: Trained) -> page.Drawn:
    """Figure 4 of a run's validation images; FigureError for a denoiser or vectors."""
    trained.need_energy("figure 4")
    if not trained.has_images:
        raise FigureError(f"figure 4 is of images, and {trained.folder} learned vectors")
    rows, split = trained.validation, trained.session.reported
    positions = trained.at_quantiles(VARIED)
    images = trained.session.images(split, positions)
    maps = trained.decibels(_varied(trained, images, positions))
    haar = trained.session.run(Stage("haar", split, len(rows["position"]), _measure_sparsity))
    a, b = joined(haar, rows)
    ratio, decibels = haar["participation_ratio"][a].numpy(), trained.decibels(rows["energy"][b]).numpy()
    spearman = float(stats.spearmanr(ratio, decibels).statistic)
    numbers: dict[str, Any] = {
        "unit": "dB/dim",
        "contrast": CONTRASTS.tolist(),
        "brightness": BRIGHTNESSES.tolist(),
        "images": [
            {
                "position": position,
                "quantile": quantile,
                "mean": float(image.mean()),
                "log_p": log_p.tolist(),
                "best": {
                    "contrast": float(CONTRASTS[int(log_p.argmax()) // len(BRIGHTNESSES)]),
                    "brightness": float(BRIGHTNESSES[int(log_p.argmax()) % len(BRIGHTNESSES)]),
                },
            }
            for position, quantile, image, log_p in zip(positions, VARIED, images, maps, strict=True)
        ],
        "sparsity": {
            "participation_ratio": ratio.tolist(), "log_p": decibels.tolist(), "spearman": spearman
        },
    }  # fmt: skip
    figure, axes = page.panels(len(images) + 1)
    _plot_maps(axes[:-1], images, maps)
    axes[-1].scatter(ratio, decibels, s=2, lw=0, color=page.DUAL, alpha=0.5, rasterized=True)
    axes[-1].set(
        xscale="log",
        xlabel="participation ratio of Haar coefficients",
        ylabel="log p, dB/dim",
        title=f"sparsity (Spearman {spearman:+.2f})",
    )
    return page.Drawn(figure, numbers, credit=trained.credit)


def _varied(trained: Trained, images: Tensor, positions: list[int]) -> Tensor:
    """U(a·(x − x̄) + b, 0) of each image, contrast and brightness, shape (n, contrasts, brightnesses).

    8-bit images are rounded to their levels, as files would be: a model that knows the levels finds what
    lies between them less probable, or more.
    """
    contrasts, brightnesses = CONTRASTS.to(images), BRIGHTNESSES.to(images)
    rounded = trained.config.data.quantized

    def measure(number: int, place: int) -> Rows:
        image = images[number]
        varied = contrasts[place] * (image - image.mean()) + brightnesses[:, None, None, None]
        if rounded:
            varied = (varied / STEP).round() * STEP
        return {"energy": trained.session.subject.energy(varied, torch.zeros_like(brightnesses))}

    settings = {
        "positions": positions,
        "rounded": rounded,
        "contrasts": CONTRASTS.tolist(),
        "brightnesses": BRIGHTNESSES.tolist(),
    }
    return _pairs(trained, "contrast", (len(images), len(contrasts)), measure, settings)["energy"]


def participation_ratio(coefficients: np.ndarray[Any, np.dtype[np.float64]]) -> Any:  # noqa: ANN401 - an array
    """How many coefficients (…, n) share the energy: (Σ c²)²/(n Σ c⁴), from 1/n (one) to 1 (all alike)."""
    squares = np.square(coefficients)
    fourth = coefficients.shape[-1] * np.square(squares).sum(axis=-1)
    total = np.square(squares.sum(axis=-1))
    return np.divide(total, fourth, out=np.ones_like(total), where=fourth > 0)


def haar_details(images: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Orthonormal Haar coefficients of images (B, C, H, W) but the coarsest averages, shape (B, n), float64.

    There are as many scales as both sides can be halved: padding odd sides would not be orthonormal.
    """
    pixels = images.double().cpu().numpy()
    halvings = min((side & -side).bit_length() - 1 for side in pixels.shape[-2:])
    _, *details = pywt.wavedec2(pixels, "haar", level=halvings, axes=(-2, -1))
    if not details:
        raise FigureError(f"images of {pixels.shape[-1]}×{pixels.shape[-2]} have no Haar scales: odd sides")
    return np.concatenate([part.reshape(len(pixels), -1) for scale in details for part in scale], axis=1)


def _measure_sparsity(_: Subject, images: Images) -> Rows:
    return {"participation_ratio": torch.from_numpy(participation_ratio(haar_details(images.clean)))}


def _plot_maps(axes: list[Any], images: Tensor, maps: Tensor) -> None:
    low, high = torch.quantile(maps.flatten(), torch.tensor([0.02, 0.98], dtype=maps.dtype)).tolist()
    for axis, image, log_p, quantile in zip(axes, images, maps, VARIED, strict=True):
        grid = CONTRASTS.numpy(), BRIGHTNESSES.numpy(), log_p.T.numpy()
        shown = axis.pcolormesh(*grid, vmin=low, vmax=high, cmap="viridis", rasterized=True)
        mean = float(image.mean())
        spread = torch.stack([(image - mean).min(), (image - mean).max()]).double().cpu()
        # Inside this line no pixel leaves [0, 1].
        for line in (-CONTRASTS * spread[0], 1.0 - CONTRASTS * spread[1]):
            axis.plot(CONTRASTS.numpy(), line.numpy(), color=page.MARK, lw=0.8, ls=":")
        axis.plot(1.0, mean, marker="o", mfc="none", mec=page.MARK, mew=1.2, ms=5)
        title = f"{quantile:.0%} quantile of log p"
        axis.set(xlim=(0.0, 2.0), ylim=(0.0, 1.0), xlabel="contrast a", title=title)
        page.inset(axis, image)
    axes[0].set_ylabel("brightness b")
    axes[0].figure.colorbar(shown, ax=axes, label="log p, dB/dim", aspect=30)


def draw_dimension(trained: Trained) -> page.Drawn:
    """Figure 5, of a run's validation images: energy and effective dimension; FigureError for a denoiser."""
    trained.need_energy("figure 5")
    session, d = trained.session, trained.dimension
    t_min, t_max = session.subject.t_range
    levels = torch.logspace(math.log10(t_min), math.log10(t_max), LEVELS, dtype=torch.float64).tolist()
    count = min(AVERAGED, trained.extent.subset)
    average = session.run(noise_levels(levels, session.reported, count))
    positions = trained.at_quantiles(FOLLOWED)
    images = session.images(session.reported, positions)
    own = _profiles(trained, images, positions, levels)
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
            for position, quantile, energy, space in zip(
                positions, FOLLOWED, own["energy"], own["space"], strict=True
            )
        ],
        "gaussian_effective_dimension": [float((spectrum / (spectrum + t)).sum()) for t in levels],
        "noise_log_p_db_per_dim": [-decibels_per_dim(noise_entropy(d, t), d) for t in levels],
    }
    figure, axes = page.panels(2, legend=True)
    for axis, key, label, title in (
        (axes[0], "log_p_db_per_dim", "log p(y | t), dB/dim", "log probability"),
        (axes[1], "effective_dimension", "d_eff", "effective dimension"),
    ):
        for image, colour in zip(numbers["images"], page.SERIES, strict=True):
            axis.plot(levels, image[key], color=colour, lw=1.0, label=f"{image['quantile']:.0%} quantile")
        axis.plot(levels, numbers["mean"][key], color=page.TRUTH, lw=1.6, label="mean")
        axis.set(xscale="log", xlabel="noise variance t", ylabel=label, title=title)
    axes[0].plot(levels, numbers["noise_log_p_db_per_dim"], color="gray", ls=":", label="noise alone")
    axes[1].plot(
        levels, numbers["gaussian_effective_dimension"], color="gray", ls="--", label="best Gaussian"
    )
    axes[1].set_yscale("log")
    handles = [*axes[0].get_legend_handles_labels()[0], axes[1].lines[-1]]
    figure.legend(handles=handles, loc="outside right upper")
    for place, pixels in enumerate(images if trained.has_images else ()):
        page.inset(axes[0], pixels, place, page.SERIES[place])
    return page.Drawn(figure, numbers, credit=trained.credit)


def _profiles(trained: Trained, images: Tensor, positions: list[int], levels: list[float]) -> Rows:
    """U(y, t) and the space loss d_eff/d at each level, means over draws, shape (images, levels)."""
    subject = trained.session.subject
    as_trained = Images(images, positions).as_trained(subject)

    def measure(number: int, level: int) -> Rows:
        image, keys = as_trained[number], [positions[number]]
        noise = torch.cat([fixed_noise(keys, image.shape, subject.seed, draw) for draw in range(DRAWS)])
        clean, noise = image.expand(DRAWS, *image.shape), noise.to(image)
        t = torch.full((DRAWS,), levels[level]).to(image)
        found = subject.energy.gradients(corrupt(clean, noise, t), t, time=False)
        assert found.energy is not None
        return {"energy": found.energy.mean(), "space": space_loss(found.image, noise, t).mean()}

    settings = {"positions": positions, "levels": levels, "draws": DRAWS, "as_trained": subject.dequantize}
    return _pairs(trained, "profiles", (len(images), len(levels)), measure, settings)
