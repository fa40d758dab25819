"""The full-covariance Gaussian that stands beside every evaluation, fitted once a data set."""

from collections.abc import Callable, Iterable

import torch

from dualscore.data.base import ImageDataModule
from dualscore.data.batch import Batch
from dualscore.evaluation.kept import Keep, Tensors
from dualscore.images import to_pixels
from dualscore.likelihood.baselines import FullGaussian

FULL_COVARIANCE_LIMIT = 4096
"""Largest d for which the full-covariance Gaussian is fitted (d² doubles, 134 MB)."""
IMAGES_PER_DIMENSION = 16
"""Training images used for that fit per dimension, at most; of small images, `FEWEST_IMAGES`."""
FEWEST_IMAGES = 2**15
BATCH = 512
VERSION = 1
"""Of the fit; what another one made is made anew."""


def fitting_images(datamodule: ImageDataModule, dimension: int) -> int:
    """How many training images the full-covariance Gaussian of d pixels is fitted to."""
    return min(datamodule.counts["train"], max(FEWEST_IMAGES, IMAGES_PER_DIMENSION * dimension))


def full_gaussian(
    datamodule: ImageDataModule,
    channels: int,
    dimension: int,
    keep: Keep,
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> FullGaussian:
    """The Gaussian with a mean and a covariance for all pixels, fitted once a data set."""
    count = fitting_images(datamodule, dimension)

    def fit() -> Tensors:
        full = FullGaussian(dimension)
        for batch in watch(datamodule.evenly_spaced("train", count, BATCH)):
            full.add(to_pixels(batch.image, channels))
        full.fit()
        return {"mean": full.mean, "factor": full.factor, "count": torch.tensor(full.count)}

    def fits(tensors: Tensors) -> bool:
        expected = {"mean": (dimension,), "factor": (dimension, dimension), "count": ()}
        return {name: tuple(value.shape) for name, value in tensors.items()} == expected

    identity = {
        "version": VERSION,
        "dataset": datamodule.identity,
        "channels": channels,
        "dimension": dimension,
        "images": count,
    }
    found = keep("full-covariance", identity, fits, fit)
    full = FullGaussian(0)
    full.restore(found["mean"], found["factor"], int(found["count"]))
    return full
