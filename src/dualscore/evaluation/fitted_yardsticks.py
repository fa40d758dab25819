"""Yardsticks that are fitted once per data set, and kept: a full-covariance Gaussian and a causal network.

Fits are kept in files NAME-HASH.safetensors, whole or absent. The header holds what decides the content, and
a digest of both; nothing in it is ever executed. A file that is damaged, or of something else, counts as
absent. Two processes that find nothing both make the same, and either's file will do.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from dualscore.data.datamodule import Batch, ImageDataModule
from dualscore.evaluation.causal import CausalMLP, train_causal
from dualscore.files.aside import write_aside
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.images import in_channels, to_pixels
from dualscore.model_files.exported import digest

Tensors = dict[str, Tensor]
_ENTRY = "dualscore"


@dataclass(frozen=True)
class Keep:
    """A cache of tensors that take long to make, in files of the given folders.

    They are looked through in order; the first that can be written to gets new files. Without any, everything
    is made anew.
    """

    folders: Sequence[Path]

    def __call__(
        self,
        name: str,
        identity: dict[str, Any],
        fits: Callable[[Tensors], bool],
        make: Callable[[], Tensors],
    ) -> Tensors:
        """Tensors on the CPU, from a file NAME-… of this identity if they fit, or made and written.

        The identity, plain values, is what decides them; `fits` tells whether what was read has the right
        shapes.
        """
        text = json.dumps(identity, sort_keys=True)
        file = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
        for folder in self.folders:
            found = _read(folder / file, identity)
            if found is not None and fits(found):
                return found
        made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
        header = {"identity": identity, "digest": digest(identity, made)}
        content = to_bytes(made, {_ENTRY: json.dumps(header, sort_keys=True)})
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_aside(folder / file, content)
            except OSError:
                continue  # not ours to write to, or full
            break
        return made


def _read(path: Path, identity: dict[str, Any]) -> Tensors | None:
    """The tensors of a file that says it is what is looked for, and is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            if not isinstance(header, dict) or header.get("identity") != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RecursionError):
        return None
    return tensors if header.get("digest") == digest(identity, tensors) else None


GAUSSIAN_VERSION = CAUSAL_VERSION = 1  # versions of the fits; files of other versions are made anew
BATCH = 512
FULL_COVARIANCE_LIMIT = 4096
"""Largest d for which the full-covariance Gaussian is fitted (d² doubles, 134 MB)."""
IMAGES_PER_DIMENSION, FEWEST_IMAGES = 16, 2**15
"""Training images for that fit: so many a dimension at most, and so many of small images."""
STEPS, SEED = 5000, 0  # the network's training: about 45 seconds on one core for gray images, 65 for colour
MOST_VALUES = 2**26  # largest training set, in 8-bit values: ten times as many as training looks at


class FullGaussian:
    """A Gaussian with mean and covariance for all d pixels, gathered over batches; takes d² doubles."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._total = torch.zeros(dimension, dtype=torch.float64)
        self._products = torch.zeros(dimension, dimension, dtype=torch.float64)

    def add(self, pixels: Tensor) -> None:
        """Add images x of shape (B, …) with d pixels each, in [0, 1]."""
        flat = pixels.flatten(1).double() - 0.5  # centred roughly, so that little cancels later
        self.count += len(flat)
        self._total += flat.sum(dim=0)
        self._products.addmm_(flat.mT, flat)

    def fit(self) -> None:
        """Fix mean and covariance; the latter is that of the dequantized images, so it is positive."""
        mean = self._total / self.count
        covariance = self._products / self.count - mean[:, None] * mean
        covariance.diagonal().add_(QUANTIZATION_VARIANCE)
        self.mean = mean + 0.5
        self.factor = torch.linalg.cholesky(covariance)

    def energy(self, pixels: Tensor) -> Tensor:
        """−log p in nats of images of shape (B, …), shape (B,)."""
        centered = (pixels.flatten(1).double() - self.mean).mT
        white = torch.linalg.solve_triangular(self.factor, centered, upper=False)
        log_determinant = 2.0 * self.factor.diagonal().log().sum()
        constant = log_determinant + len(self.mean) * math.log(2 * math.pi)
        energy: Tensor = 0.5 * (white.square().sum(dim=0) + constant)
        return energy


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
    """The Gaussian of the training images, gray or in colour; `watch` shows the batches as they pass."""
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
        "version": GAUSSIAN_VERSION,
        "dataset": datamodule.identity,
        "channels": channels,
        "dimension": dimension,
        "images": count,
    }
    found = keep("full-covariance", identity, fits, fit)
    full = FullGaussian(0)
    full.mean, full.factor, full.count = found["mean"], found["factor"], int(found["count"])
    return full


def causal_mlp(
    datamodule: ImageDataModule,
    channels: int,
    shape: tuple[int, ...],
    keep: Keep,
    watch: Callable[[Iterable[int]], Iterator[int]] = iter,
) -> tuple[CausalMLP, int]:
    """The causal network, and how many 8-bit images of a shape (C, H, W) it learned; `watch` shows steps."""
    count = min(datamodule.counts["train"], max(1, MOST_VALUES // math.prod(shape)))
    expected = {name: value.shape for name, value in CausalMLP(channels).state_dict().items()}

    def train() -> Tensors:
        batches = datamodule.evenly_spaced("train", count, BATCH)
        images = torch.cat([in_channels(batch.image, channels) for batch in batches])
        return train_causal(images, steps=STEPS, seed=SEED, watch=watch).state_dict()

    def fits(tensors: Tensors) -> bool:
        return {name: value.shape for name, value in tensors.items()} == expected

    identity = {
        "version": CAUSAL_VERSION,
        "steps": STEPS,
        "seed": SEED,
        "dataset": datamodule.identity,
        "channels": channels,
        "images": count,
    }
    model = CausalMLP(channels)
    model.load_state_dict(keep("causal", identity, fits, train))
    return model.requires_grad_(False).eval(), count
