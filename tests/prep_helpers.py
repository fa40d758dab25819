"""Short-hands for the tests of the data preparation."""

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import data_prep.build
from data_prep.plan import Request
from data_prep.sources import SOURCES
from dualscore.data.shards import Manifest


def build(
    dataset: str,
    out: Path,
    src: Path | None = None,
    workers: int = 1,
    size: int | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int | None = None,
    images_per_shard: int | None = None,
) -> Manifest:
    """Build as the command line does, by default in this process."""
    if "seed" in SOURCES[dataset].uses and seed is None:
        seed = 0
    if "test_fraction" in SOURCES[dataset].uses and test_fraction is None:
        test_fraction = 0.1
    request = Request(dataset, src, size, val_fraction, test_fraction, seed, images_per_shard, workers)
    return data_prep.build.build(request, SOURCES[dataset], out)


def read_split(out: Path, split: str) -> NDArray[np.uint8]:
    """All images of a split in order, read with tarfile alone; checks the entries' names."""
    manifest = Manifest.load(out)
    images = []
    for shard in manifest.splits[split].shards:
        with tarfile.open(out / shard.file) as tar:
            for entry in tar:
                assert entry.name == f"{len(images):09d}.u8"
                file = tar.extractfile(entry)
                assert file is not None
                images.append(np.frombuffer(file.read(), np.uint8).reshape(manifest.image_shape))
    return np.stack(images)


def names_of(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The names of each split's photographs."""
    assert manifest.photographs is not None
    return {split: known.names for split, known in manifest.photographs.splits.items()}


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
