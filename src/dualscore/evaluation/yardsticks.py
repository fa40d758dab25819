"""What stands beside every evaluation: likelihoods of the same images that anybody gets within a minute.

Two Gaussians, a small causal network with an exact likelihood, and lossless codecs. What is fitted to the
training images is kept beside them, or, where that is no folder to write to, with the evaluation.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dualscore.bars import progress_bar
from dualscore.data.datamodule import Batch, ImageDataModule
from dualscore.errors import DataError
from dualscore.evaluation.causal_code import decode, encode
from dualscore.evaluation.codecs import CODECS, mosaic
from dualscore.evaluation.fitted_yardsticks import BATCH, STEPS, FittingData, causal_mlp, full_gaussian
from dualscore.evaluation.session import nested_choice
from dualscore.gaussian import StationaryGaussian
from dualscore.images import dequantize, in_channels, to_pixels
from dualscore.likelihood import bits, bits_per_dim, dequantized_bits_per_dim, mean
from dualscore.measuring.row_figures import Estimated, Figure, plain
from dualscore.noise import fixed_uniform

STATIONARY, FULL_COVARIANCE, CAUSAL, CAUSAL_FILE = "stationary", "full_covariance", "causal", "causal_file"
YARDSTICKS = (STATIONARY, FULL_COVARIANCE, CAUSAL, CAUSAL_FILE, *CODECS)
"""Names of all of them, in the order they are shown."""
LABELS = {
    STATIONARY: "Gaussian, stationary",
    FULL_COVARIANCE: "Gaussian, full cov.",
    CAUSAL: "causal MLP",
    CAUSAL_FILE: "causal MLP, decoded",
    **{name: label for name, (label, _) in CODECS.items()},
}
EXACT, DEQUANTIZED, DENSITY, FILE = "exact", "dequantized", "density", "file"
"""Kinds of figures: −log₂ P of 8-bit images; a bound on it; a density on [0, 1]^d; a file's length."""
FOLDER = ".yardsticks"  # beside the shards: what is kept
CAUSAL_VALUES = 2**22  # 8-bit values that the network is measured on, at most: about 15 seconds of a core
CODED_VALUES = 2**19  # those that it codes and decodes, pixel after pixel: about a minute
CODEC_PIXELS = 2**19  # pixels of a mosaic, at most: some seconds of WebP
_NO_LEVELS = "of 8-bit images only, and these are floats"


@dataclass(frozen=True)
class Yardstick:
    """One row: a figure in bits/dim, or why there is none."""

    label: str
    kind: str  # `EXACT`, `DEQUANTIZED`, `DENSITY` or `FILE`
    note: str = ""  # how it was made, or why there is no figure, for people
    value: float | None = None  # bits/dim, the mean over images
    images: int = 0
    training_images: int | None = None  # images it was fitted to; None for codecs
    found: Estimated | None = None  # bits/dim of each image; None for codecs

    def figure(self, photographs: Callable[[Tensor], Tensor | None]) -> Figure:
        """The yardstick as evaluation.json holds it, with its error over photographs."""
        stderr, groups = None, None
        if self.found is not None and self.images > 1:
            groups = photographs(self.found.position)
            stderr = plain(mean(self.found.bits, groups))["stderr"]
        return {
            "label": self.label,
            "kind": self.kind,
            "value": self.value,
            "stderr": stderr,
            "images": self.images,
            "photographs": None if groups is None else len(torch.unique(groups)),
            "training_images": self.training_images,
            "note": self.note,
        }


@dataclass(frozen=True)
class _Measure:
    """How a batch is measured, or for codecs only gathered."""

    values: Callable[[Tensor, Tensor], Tensor]
    """Stored images (B, C, H, W) and their positions (B,) → (B,)."""
    training_images: int | None = None
    most: int = sys.maxsize  # images it measures, at most
    note: str = ""


@torch.random.fork_rng(devices=[])  # a loader draws a seed of the global random numbers
def measure_yardsticks(
    datamodule: ImageDataModule,
    stationary: StationaryGaussian,
    *,
    split: str,
    count: int,
    seed: int,
    folder: Path,
    console: Console,
    wanted: Sequence[str] = YARDSTICKS,
) -> dict[str, Yardstick]:
    """Measure the wanted yardsticks on `count` images of a split, evenly spaced; to be called by one process.

    The Gaussians are measured on all of these images, the network and the codecs on an even choice where
    there are many (`nested_choice`, as stages of the evaluation). The stationary Gaussian is that of the
    training images, dequantized, in double precision; the seed gives the noise that dequantizes images, the
    first draw of the evaluation's own; `folder` keeps fits that cannot be kept beside the data. A DataError
    says that images of the split cannot be read; where training images cannot, the yardsticks' rows say so.
    """
    channels, height, width = shape = tuple(stationary.eigenvalues.shape)
    dimension, path = math.prod(shape), datamodule.path
    count, floats = min(count, datamodule.counts[split]), _are_floats(datamodule, split)
    kinds = {name: FILE if name in CODECS else DENSITY if floats else DEQUANTIZED for name in YARDSTICKS}
    kinds |= {CAUSAL: EXACT, CAUSAL_FILE: FILE}

    def watch(name: str, items: Iterable[Any], total: int) -> Iterator[Any]:
        with progress_bar(console) as progress:
            yield from progress.track(items, total, description=name)

    def gaussian(energy: Callable[[Tensor], Tensor], training_images: int) -> _Measure:
        def measure(stored: Tensor, position: Tensor) -> Tensor:
            x = to_pixels(stored, channels, torch.float64)
            if floats:
                return bits_per_dim(energy(x), dimension)
            x = dequantize(x, fixed_uniform(position.tolist(), shape, seed).double())
            return dequantized_bits_per_dim(energy(x), dimension)

        return _Measure(measure, training_images)

    def causal() -> _Measure:
        if _are_floats(datamodule, "train"):
            raise DataError(_NO_LEVELS)
        model, training_images = causal_mlp(data)
        weights = sum(parameter.numel() for parameter in model.parameters())
        note, most = f"{weights:,} weights, {STEPS:,} steps", max(1, CAUSAL_VALUES // dimension)
        return _Measure(lambda stored, _: bits(model.energy(stored), dimension), training_images, most, note)

    def causal_file() -> _Measure:
        learned = causal()
        model, _ = causal_mlp(data)

        def measure(stored: Tensor, _: Tensor) -> Tensor:
            content = encode(model, stored)
            if not torch.equal(decode(model, content, tuple(stored.shape)), stored):
                raise DataError("what was decoded is not what was coded")
            return torch.full((len(stored),), 8.0 * len(content) / stored.numel(), dtype=torch.float64)

        note = f"{learned.note}; every pixel decoded"
        return _Measure(measure, learned.training_images, max(1, CODED_VALUES // dimension), note)

    folders = [*([path / FOLDER] if isinstance(path, Path) else []), folder]
    data = FittingData(datamodule, channels, dimension, folders, watch)
    fits = {
        STATIONARY: lambda: gaussian(partial(_energy, stationary), datamodule.statistics_images),
        FULL_COVARIANCE: lambda: gaussian(*full_gaussian(data)),
        CAUSAL: causal,
        CAUSAL_FILE: causal_file,
    }
    rows: dict[str, Yardstick] = {}
    measures: dict[str, _Measure] = {}
    for name in (name for name in fits if name in wanted):
        try:
            measures[name] = fits[name]()
        except DataError as error:
            rows[name] = Yardstick(LABELS[name], kinds[name], str(error))
    codecs = [name for name in CODECS if name in wanted]
    if codecs and not floats:
        measures[FILE] = _Measure(lambda stored, _: stored, most=max(1, CODEC_PIXELS // (height * width)))
    batches = datamodule.evenly_spaced(split, count, BATCH)
    tables = _measured(measures, watch("yardsticks", batches, -(-count // BATCH)), channels, count)
    tiles = tables.pop(FILE)[1] if FILE in tables else None
    for name, (position, values) in tables.items():
        rows[name] = Yardstick(
            LABELS[name], kinds[name], measures[name].note, float(values.mean()), len(values),
            measures[name].training_images, Estimated(position, values),
        )  # fmt: skip
    rows |= {name: _codec(name, tiles) for name in codecs}
    return {name: rows[name] for name in YARDSTICKS if name in rows}


def _measured(
    measures: dict[str, _Measure], batches: Iterable[Batch], channels: int, count: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Positions (n,) and values, by measure, of its choice of `count` images that pass in batches."""
    chosen = {name: nested_choice(count, min(count, measure.most)) for name, measure in measures.items()}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in measures}
    for batch in batches:
        stored = in_channels(batch.image, channels)
        for name, measure in measures.items():
            keep = torch.tensor([ordinal in chosen[name] for ordinal in batch.ordinal.tolist()])
            if keep.any():
                position = batch.position[keep]
                found[name].append((position, measure.values(stored[keep], position)))
    return {
        name: (torch.cat([position for position, _ in parts]), torch.cat([values for _, values in parts]))
        for name, parts in found.items()
    }


def _energy(stationary: StationaryGaussian, x: Tensor) -> Tensor:
    energy: Tensor = stationary(x, torch.zeros(len(x), dtype=x.dtype)).energy
    return energy


def _codec(name: str, tiles: Tensor | None) -> Yardstick:
    """What a codec makes of a mosaic of 8-bit images."""
    label, encode = CODECS[name]
    if tiles is None:
        return Yardstick(label, FILE, _NO_LEVELS)
    try:
        picture = mosaic(tiles.numpy())
        size = len(encode(picture))
    except DataError as error:
        return Yardstick(label, FILE, str(error))
    height, width = picture.shape[:2]
    note = f"a mosaic of {len(tiles):,} images, {height:,}×{width:,} pixels, {size:,} bytes"
    return Yardstick(label, FILE, note, 8 * size / tiles.numel(), len(tiles))


def _are_floats(datamodule: ImageDataModule, split: str) -> bool:
    """Whether images are floats instead of 8-bit, judged by the first one."""
    first: Batch = next(iter(datamodule.evenly_spaced(split, 1, 1)))
    return first.image.is_floating_point()
