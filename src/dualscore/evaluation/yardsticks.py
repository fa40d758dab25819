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
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dualscore.data.datamodule import Batch, ImageDataModule
from dualscore.errors import DataError
from dualscore.evaluation import fitted_yardsticks
from dualscore.evaluation.codecs import CODECS, mosaic
from dualscore.evaluation.fitted_yardsticks import BATCH, STEPS, Keep, causal_mlp, full_gaussian
from dualscore.evaluation.session import nested_choice
from dualscore.gaussian import StationaryGaussian
from dualscore.images import dequantize, in_channels, to_pixels
from dualscore.likelihood import bits, bits_per_dim, dequantized_bits_per_dim, mean
from dualscore.measuring.row_figures import plain
from dualscore.noise import fixed_uniform

STATIONARY, FULL_COVARIANCE, CAUSAL = "stationary", "full_covariance", "causal"
YARDSTICKS = (STATIONARY, FULL_COVARIANCE, CAUSAL, *CODECS)
"""Names of all of them, in the order they are shown."""
LABELS = {
    STATIONARY: "Gaussian, stationary",
    FULL_COVARIANCE: "Gaussian, full cov.",
    CAUSAL: "causal MLP",
    **{name: label for name, (label, _) in CODECS.items()},
}
EXACT, DEQUANTIZED, DENSITY, FILE = "exact", "dequantized", "density", "file"
"""Kinds of figures: −log₂ P of 8-bit images; a bound on it; a density on [0, 1]^d; a file's length."""
FOLDER = ".yardsticks"  # beside the shards: what is kept
CAUSAL_VALUES = 2**22  # 8-bit values that the network is measured on, at most: about 15 seconds of a core
CODEC_PIXELS = 2**19  # pixels of a mosaic, at most: some seconds of WebP
_NO_LEVELS = "of 8-bit images only, and these are floats"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Yardstick:
    """One row: a figure in bits/dim, or why there is none."""

    label: str
    kind: str  # `EXACT`, `DEQUANTIZED`, `DENSITY` or `FILE`
    value: float | None = None  # bits/dim, the mean over images; None where there is a `reason`
    images: int = 0
    training_images: int | None = None  # images it was fitted to; None for codecs
    positions: Tensor | None = None  # the images' places in the split, int64, shape (n,); None for codecs
    bits_per_dim: Tensor | None = None  # bits/dim of each of these images, float64, shape (n,)
    detail: str = ""  # how it was made, for people
    reason: str = ""  # why there is no figure


@dataclass(frozen=True)
class _Measure:
    """How a fitted yardstick measures a batch."""

    kind: str
    training_images: int
    bits_per_dim: Callable[[Tensor, list[int]], Tensor]
    """Stored images (B, C, H, W) and their positions → (B,)."""
    most: int  # images it measures, at most
    detail: str


def figure(yardstick: Yardstick, photographs: Callable[[Tensor], Tensor | None]) -> dict[str, Any]:
    """A yardstick as evaluation.json holds it; the error is over photographs, null where there is none."""
    y, stderr, groups = yardstick, None, None
    if y.bits_per_dim is not None and y.positions is not None and len(y.positions) > 1:
        groups = photographs(y.positions)
        stderr = plain(mean(y.bits_per_dim, groups))["stderr"]
    return {
        "label": y.label,
        "kind": y.kind,
        "value": y.value,
        "stderr": stderr,
        "images": y.images,
        "photographs": None if groups is None else len(torch.unique(groups)),
        "training_images": y.training_images,
        "note": y.reason or y.detail,
    }


@torch.random.fork_rng(devices=[])  # a loader draws a seed of the global random numbers
def measure_yardsticks(
    datamodule: ImageDataModule,
    stationary: StationaryGaussian,
    channels: int,
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
    setting = _Setting(datamodule, stationary, channels, seed, folder, console)
    count = min(count, datamodule.counts[split])
    floats = _are_floats(datamodule, split)
    rows: dict[str, Yardstick] = {}
    measures: dict[str, _Measure] = {}
    for name in (name for name in YARDSTICKS if name in wanted and name not in CODECS):
        kind = EXACT if name == CAUSAL else DENSITY if floats else DEQUANTIZED
        try:
            measures[name] = setting.fitted(name, kind)
        except DataError as error:
            rows[name] = Yardstick(LABELS[name], kind, reason=str(error))
    codecs = [name for name in CODECS if name in wanted]
    limits = {name: measure.most for name, measure in measures.items()}
    limits |= (
        {"mosaic": max(1, CODEC_PIXELS // math.prod(setting.shape[1:]))} if codecs and not floats else {}
    )
    chosen = {name: nested_choice(count, min(count, most)) for name, most in limits.items()}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in limits}
    batches = datamodule.evenly_spaced(split, count, BATCH)
    for batch in _shown(batches, "yardsticks", -(-count // BATCH), console):
        stored = in_channels(batch.image, channels)
        for name in limits:
            keep = torch.tensor([ordinal in chosen[name] for ordinal in batch.ordinal.tolist()])
            if keep.any():
                images, positions = stored[keep], batch.position[keep]
                if name in measures:
                    images = measures[name].bits_per_dim(images, positions.tolist())
                found[name].append((positions, images))
    for name, measure in measures.items():
        positions, values = (torch.cat(parts) for parts in zip(*found[name], strict=True))
        rows[name] = Yardstick(
            LABELS[name], measure.kind, float(values.mean()), len(values),
            measure.training_images, positions, values, measure.detail,
        )  # fmt: skip
    tiles = torch.cat([images for _, images in found["mosaic"]]) if "mosaic" in found else None
    rows |= {name: _codec(name, tiles) for name in codecs}
    return {name: rows[name] for name in YARDSTICKS if name in rows}


@dataclass(frozen=True)
class _Setting:
    """The data that yardsticks are fitted to, and the place where fits are kept."""

    datamodule: ImageDataModule
    stationary: StationaryGaussian
    channels: int
    seed: int
    folder: Path
    console: Console

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stationary.eigenvalues.shape)

    @property
    def dimension(self) -> int:
        return self.stationary.eigenvalues.numel()

    def fitted(self, name: str, kind: str) -> _Measure:
        """Fit a yardstick, or take it from its file; a DataError says why there is none."""
        path = self.datamodule.path
        keep = Keep([*([path / FOLDER] if isinstance(path, Path) else []), self.folder])
        if name == STATIONARY:
            return self._gaussian(kind, self._stationary_energy, self.datamodule.statistics_images)
        return self._full_covariance(kind, keep) if name == FULL_COVARIANCE else self._causal(kind, keep)

    def _stationary_energy(self, x: Tensor) -> Tensor:
        energy: Tensor = self.stationary(x, torch.zeros(len(x), dtype=x.dtype)).energy
        return energy

    def _full_covariance(self, kind: str, keep: Keep) -> _Measure:
        limit = fitted_yardsticks.FULL_COVARIANCE_LIMIT
        if self.dimension > limit:
            raise DataError(f"d = {self.dimension:,} is too large: at most {limit:,}")
        batches = -(-fitted_yardsticks.fitting_images(self.datamodule, self.dimension) // BATCH)
        watch = partial(_shown, name="Gaussian", total=batches, console=self.console)
        full = full_gaussian(self.datamodule, self.channels, self.dimension, keep, watch)
        return self._gaussian(kind, full.energy, full.count)

    def _gaussian(self, kind: str, energy: Callable[[Tensor], Tensor], training_images: int) -> _Measure:
        def measure(stored: Tensor, positions: list[int]) -> Tensor:
            x = to_pixels(stored, self.channels, torch.float64)
            if kind == DENSITY:
                return bits_per_dim(energy(x), self.dimension)
            x = dequantize(x, fixed_uniform(positions, self.shape, self.seed).double())
            return dequantized_bits_per_dim(energy(x), self.dimension)

        return _Measure(kind, training_images, measure, sys.maxsize, "")

    def _causal(self, kind: str, keep: Keep) -> _Measure:
        if _are_floats(self.datamodule, "train"):
            raise DataError(_NO_LEVELS)
        watch = partial(_shown, name="causal MLP", total=STEPS, console=self.console)
        model, count = causal_mlp(self.datamodule, self.channels, self.shape, keep, watch)
        weights = sum(parameter.numel() for parameter in model.parameters())

        def measure(stored: Tensor, _: list[int]) -> Tensor:
            return bits(model.energy(stored), self.dimension)

        most = max(1, CAUSAL_VALUES // self.dimension)
        return _Measure(kind, count, measure, most, f"{weights:,} weights, {STEPS:,} steps")


def _codec(name: str, tiles: Tensor | None) -> Yardstick:
    """What a codec makes of a mosaic of 8-bit images."""
    label, encode = CODECS[name]
    if tiles is None:
        return Yardstick(label, FILE, reason=_NO_LEVELS)
    try:
        picture = mosaic(tiles.numpy())
        size = len(encode(picture))
    except DataError as error:
        return Yardstick(label, FILE, reason=str(error))
    height, width = picture.shape[:2]
    detail = f"a mosaic of {len(tiles):,} images, {height:,}×{width:,} pixels, {size:,} bytes"
    return Yardstick(label, FILE, 8 * size / tiles.numel(), len(tiles), detail=detail)


def _are_floats(datamodule: ImageDataModule, split: str) -> bool:
    """Whether images are floats instead of 8-bit, judged by the first one."""
    first: Batch = next(iter(datamodule.evenly_spaced(split, 1, 1)))
    return first.image.is_floating_point()


def _shown(items: Iterable[Item], name: str, total: int, console: Console) -> Iterator[Item]:
    """Pass items on, with a bar on a terminal."""
    columns = (TextColumn("{task.description:14}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total)
        for item in items:
            yield item
            progress.advance(task)
