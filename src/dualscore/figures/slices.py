"""Figure 4: log probability over contrast and brightness, and against the sparsity of Haar coefficients."""

from pathlib import Path
from typing import Any

import numpy as np
import pywt
import torch
from scipy import stats
from torch import Tensor

from dualscore.errors import FigureError
from dualscore.figures import page
from dualscore.figures.trained import Trained
from dualscore.likelihood.units import STEP
from dualscore.measuring.subject import Images, Rows, Stage, Subject, joined

QUANTILES = (0.1, 0.5, 0.9)
"""Of log p: which images are varied."""
CONTRASTS = torch.linspace(0.0, 2.0, 25, dtype=torch.float64)
"""a in a·(x − x̄) + b; 1 is the image's own."""
BRIGHTNESSES = torch.linspace(0.0, 1.0, 25, dtype=torch.float64)
"""b, the mean of the result."""


def draw_slices(trained: Trained, out: Path) -> list[Path]:
    """Draw figure 4 of a run's validation images; FigureError for a denoiser or vectors."""
    trained.need_energy("figure 4")
    trained.need_images("figure 4")
    rows = trained.validation
    positions = trained.at_quantiles(QUANTILES)
    images = trained.session.images(trained.session.reported, positions)
    maps = trained.decibels(_varied(trained, images, positions))
    count = len(rows["position"])
    haar = trained.session.run(Stage("haar", trained.session.reported, count, _measure_sparsity))
    a, b = joined(haar, rows)
    ratio, decibels = haar["participation_ratio"][a], trained.decibels(rows["energy"][b])
    rank = stats.spearmanr(ratio.numpy(), decibels.numpy())
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
                "best": _best(log_p),
            }
            for position, quantile, image, log_p in zip(positions, QUANTILES, images, maps, strict=True)
        ],
        "sparsity": {
            "participation_ratio": ratio.tolist(),
            "log_p": decibels.tolist(),
            "spearman": float(rank.statistic),
        },
    }
    with page.style():
        figure, axes = page.panels(len(images) + 1)
        _plot_maps(axes[:-1], images, maps)
        points = ratio.numpy(), decibels.numpy()
        axes[-1].scatter(*points, s=2, lw=0, color=page.DUAL, alpha=0.5, rasterized=True)
        axes[-1].set(
            xscale="log",
            xlabel="participation ratio of Haar coefficients",
            ylabel="log p, dB/dim",
            title=f"sparsity (Spearman {rank.statistic:+.2f})",
        )
        return page.write(figure, numbers, out, "figure4", credit=trained.credit)


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


def _varied(trained: Trained, images: Tensor, positions: list[int]) -> Tensor:
    """U(a·(x − x̄) + b, 0) of each image, contrast and brightness, shape (n, contrasts, brightnesses).

    8-bit images are rounded to their levels, as files would be: a model that knows the levels finds what
    lies between them less probable, or more.
    """
    contrasts, brightnesses = CONTRASTS.to(images), BRIGHTNESSES.to(images)

    def measure(numbers: list[int]) -> Rows:
        rows = []
        for number in numbers:
            image, contrast = images[number // len(contrasts)], contrasts[number % len(contrasts)]
            varied = contrast * (image - image.mean()) + brightnesses[:, None, None, None]
            if trained.config.data.quantized:
                varied = (varied / STEP).round() * STEP
            with torch.no_grad():
                rows.append(trained.session.subject.energy(varied, torch.zeros_like(brightnesses)))
        return {"energy": torch.stack(rows)}

    settings = {
        "positions": positions,
        "rounded": trained.config.data.quantized,
        "contrasts": CONTRASTS.tolist(),
        "brightnesses": BRIGHTNESSES.tolist(),
    }
    rows = trained.session.rows("contrast", len(images) * len(contrasts), measure, settings)
    return rows["energy"].reshape(len(images), len(contrasts), len(brightnesses))


def _best(log_p: Tensor) -> dict[str, float]:
    contrast, brightness = divmod(int(log_p.argmax()), len(BRIGHTNESSES))
    return {"contrast": float(CONTRASTS[contrast]), "brightness": float(BRIGHTNESSES[brightness])}


def _plot_maps(axes: list[Any], images: Tensor, maps: Tensor) -> None:
    low, high = torch.quantile(maps.flatten(), torch.tensor([0.02, 0.98], dtype=maps.dtype)).tolist()
    for axis, image, log_p, quantile in zip(axes, images, maps, QUANTILES, strict=True):
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
