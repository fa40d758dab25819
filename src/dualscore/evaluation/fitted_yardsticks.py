"""Yardsticks that are fitted once per data set, and kept: a full-covariance Gaussian and a causal network.

Fits are kept in files NAME-HASH.safetensors, whole or absent. The header holds what decides the content, and
a digest of both; nothing in it is ever executed. A file that is damaged, or of something else, counts as
absent. Two processes that find nothing both make the same, and either's file will do.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from dualscore.data.datamodule import ImageDataModule
from dualscore.errors import DataError
from dualscore.evaluation.causal import CausalMLP, train_causal
from dualscore.files.aside import write_aside
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.images import in_channels, to_pixels
from dualscore.model_files.exported import digest

Tensors = dict[str, Tensor]
_ENTRY = "dualscore"

GAUSSIAN_VERSION = CAUSAL_VERSION = 1  # versions of the fits; files of other versions are made anew
BATCH = 512
FULL_COVARIANCE_LIMIT = 4096
"""Largest d for which the full-covariance Gaussian is fitted (d² doubles, 134 MB)."""
IMAGES_PER_DIMENSION, FEWEST_IMAGES = 16, 2**15
"""Training images for that fit: so many a dimension at most, and so many of small images."""
STEPS, SEED = 5000, 0  # the network's training: about 45 seconds on one core for gray images, 65 for colour
MOST_VALUES = 2**26  # largest training set, in 8-bit values: ten times as many as training looks at


def kept(
    folders: Sequence[Path], name: str, identity: dict[str, Any], make: Callable[[], Tensors]
) -> Tensors:
    """Tensors on the CPU that take long to make, from a file NAME-… of this identity, or made and written.

    The identity, plain values, is what decides them. Folders are looked through in order; the first that can
    be written to gets a new file.
    """
    text = json.dumps(identity, sort_keys=True)
    file = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    for folder in folders:
        if (found := _read(folder / file, identity)) is not None:
            return found
    made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
    header = {"identity": identity, "digest": digest(identity, made)}
    content = to_bytes(made, {_ENTRY: json.dumps(header, sort_keys=True)})
    for folder in folders:
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RuntimeError):  # the last of torch, for a file just deleted
        return None
    return tensors if header == {"identity": identity, "digest": digest(identity, tensors)} else None


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


class FittingData(NamedTuple):
    """The training images, as gray or in colour, and the folders where fits of them are kept."""

    datamodule: ImageDataModule
    channels: int
    dimension: int
    folders: Sequence[Path]
    watch: Callable[[str, Iterable[Any], int], Iterator[Any]]
    """Shows, under a name, so many items as they pass."""


def full_gaussian(data: FittingData) -> tuple[Callable[[Tensor], Tensor], int]:
    """The Gaussian's energy, and how many training images it is of; DataError where d is too large."""
    d = data.dimension
    if d > FULL_COVARIANCE_LIMIT:
        raise DataError(f"d = {d:,} is too large: at most {FULL_COVARIANCE_LIMIT:,}")
    count = min(data.datamodule.counts["train"], max(FEWEST_IMAGES, IMAGES_PER_DIMENSION * d))

    def fit() -> Tensors:
        full, batches = FullGaussian(d), data.datamodule.evenly_spaced("train", count, BATCH)
        for batch in data.watch("Gaussian", batches, -(-count // BATCH)):
            full.add(to_pixels(batch.image, data.channels))
        full.fit()
        return {"mean": full.mean, "factor": full.factor, "count": torch.tensor(full.count)}

    of = {"version": GAUSSIAN_VERSION, "dimension": d}
    found, full = _kept_fit(data, "full-covariance", of, count, fit), FullGaussian(0)
    full.mean, full.factor = found["mean"], found["factor"]
    return full.energy, int(found["count"])


def causal_mlp(data: FittingData) -> tuple[CausalMLP, int]:
    """The causal network, and how many 8-bit training images it learned."""
    count = min(data.datamodule.counts["train"], max(1, MOST_VALUES // data.dimension))

    def train() -> Tensors:
        batches = data.datamodule.evenly_spaced("train", count, BATCH)
        images = torch.cat([in_channels(batch.image, data.channels) for batch in batches])

        def watch(steps: Iterator[int]) -> Iterator[int]:
            return data.watch("causal MLP", steps, STEPS)

        return train_causal(images, steps=STEPS, seed=SEED, watch=watch).state_dict()

    of, model = {"version": CAUSAL_VERSION, "steps": STEPS, "seed": SEED}, CausalMLP(data.channels)
    model.load_state_dict(_kept_fit(data, "causal", of, count, train))
    return model.requires_grad_(False).eval(), count


def _kept_fit(
    data: FittingData, name: str, of: dict[str, Any], images: int, make: Callable[[], Tensors]
) -> Tensors:
    identity = of | {"dataset": data.datamodule.identity, "channels": data.channels, "images": images}
    return kept(data.folders, name, identity, make)
