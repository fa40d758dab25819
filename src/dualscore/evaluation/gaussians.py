"""The Gaussians that stand beside every evaluation, measured on the same images."""

from typing import Any

from dualscore.data.base import ImageDataModule
from dualscore.gaussian import StationaryGaussian
from dualscore.images import to_pixels
from dualscore.likelihood.baselines import FullGaussian, gaussian_bits_per_dim

FULL_COVARIANCE_LIMIT = 4096
"""Largest d for which the full-covariance Gaussian is fitted (d² doubles, 134 MB)."""
IMAGES_PER_DIMENSION = 16
"""Training images used for that fit per dimension, at most; of small images, `FEWEST_IMAGES`."""
FEWEST_IMAGES = 2**15


def measure_gaussians(
    datamodule: ImageDataModule, stationary: StationaryGaussian, channels: int, images: int
) -> dict[str, Any]:
    """Fit the full-covariance Gaussian where d allows it, and measure both on validation images."""
    dimension = stationary.eigenvalues.numel()
    full = None
    if dimension <= FULL_COVARIANCE_LIMIT:
        full = FullGaussian(dimension)
        count = min(datamodule.counts["train"], max(FEWEST_IMAGES, IMAGES_PER_DIMENSION * dimension))
        for batch in datamodule.evenly_spaced("train", count, 512):
            full.add(to_pixels(batch.image, channels))
        full.fit()
    batches = (batch.image for batch in datamodule.evenly_spaced("val", images, 512))
    return {
        **gaussian_bits_per_dim(stationary, full, batches, channels),
        "images": images,
        "training_images": {
            "stationary": datamodule.statistics_images,
            "full_covariance": full.count if full is not None else None,
        },
    }
