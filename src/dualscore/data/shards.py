r"""The on-disk format of a prepared data set, shared by its writer and its reader.

A folder holds ``manifest.json``, ``spectrum.npy`` and shards ``train-000000.tar``, …, ``val-000000.tar``, …;
it may hold ``test-000000.tar``, … and, of crops, ``photographs.npz`` (`dualscore.data.photograph_numbers`).
A shard is a plain tar; an entry is one image: ``{index:09d}.u8``, its raw uint8 pixels, channel-major, where
``index`` counts the images of the split from 0 in shard order.

``spectrum.npy`` describes the training images at second order. With ŷ the orthonormal 2-D DCT-II of
image/255 − pixel_mean, it is E[ŷ ŷᵀ] over channels at each spatial frequency, without dequantization noise.
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualscore.data.photograph_numbers import SHA256, Photographs, parse_photographs, read_checked, wrong
from dualscore.errors import DataError
from dualscore.files.aside import write_aside
from dualscore.files.typed_json import TypedJson, parse_json
from dualscore.shipped import prepare

FORMAT = "dualscore-shards-1"
MANIFEST_FILE = "manifest.json"
IMAGE_SUFFIX = ".u8"
SPLITS = ("train", "val", "test")
"""In the manifest's order: for learning, for choosing and, if there is one, for reporting."""
REQUIRED_SPLITS = ("train", "val")
MOST_CHANNELS = 16
MOST_VALUES = 2**24
"""Largest image, in values: memory is allocated as a manifest claims."""
_FEWEST_BYTES = 1024
"""Bytes that any image takes in a tar: a header and a block."""


def shard_name(split: str, number: int) -> str:
    """File name of a split's shard; ``number`` counts from 0."""
    return f"{split}-{number:06d}.tar"


def entry_name(index: int) -> str:
    """Name, inside a shard, of the image at position ``index`` of its split."""
    return f"{index:09d}{IMAGE_SUFFIX}"


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, number of images, size in bytes and SHA-256 (hexadecimal)."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split in order, and their total number of images."""

    images: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Statistics:
    """Second-order statistics of the training images, in units of pixels in [0, 1].

    ``pixel_variance`` is taken around the channel's mean, over all its pixels in all training images.
    """

    images: int
    pixel_mean: list[float]
    pixel_variance: list[float]
    spectrum_file: str
    spectrum_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says: a prepared data set's shape, splits, statistics and origin.

    ``image_shape`` is (C, H, W); ``source`` is free-form JSON saying what the images were made from;
    ``photographs`` is None where nobody knows which photograph an image is of.
    """

    format: str
    dataset: str
    release: str
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]
    statistics: Statistics
    source: dict[str, Any]
    photographs: Photographs | None = None

    @property
    def images(self) -> dict[str, int]:
        """How many images each split has."""
        return {name: split.images for name, split in self.splits.items()}

    def save(self, folder: str | Path) -> None:
        """Write ``folder/manifest.json``, whole or not at all."""
        document = asdict(self)
        if self.photographs is None:
            del document["photographs"]
        elif self.photographs.each_image:
            document["photographs"] = {"each_image": True}
        else:
            for split in document["photographs"]["splits"].values():
                if not split["names"]:
                    del split["names"]
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        write_aside(Path(folder) / MANIFEST_FILE, text.encode())

    @classmethod
    def load(cls, folder: str | Path, hint: str | None = None) -> "Manifest":
        """Read and check ``folder/manifest.json``, the presence and size of each shard, and the other files.

        DataErrors name the file and the key at fault; `hint` is the command that makes a missing data set.
        """
        manifest = cls.read(folder, hint)
        for shard in (shard for split in manifest.splits.values() for shard in split.shards):
            path = Path(folder) / shard.file
            try:
                found = path.stat().st_size
            except OSError as error:
                raise wrong(path, f"cannot be read: {error.strerror}") from None
            if found != shard.bytes:
                raise wrong(path, f"has {found} bytes instead of {shard.bytes}")
        load_spectrum(folder, manifest)
        if manifest.photographs is not None:
            manifest.photographs.load(folder, manifest.images)
        return manifest

    @classmethod
    def read(cls, folder: str | Path, hint: str | None = None) -> "Manifest":
        """Read and check ``folder/manifest.json`` as ``load`` does, without looking at the other files."""
        path = Path(folder) / MANIFEST_FILE
        try:
            return cls.parse(path.read_bytes(), path)
        except (FileNotFoundError, NotADirectoryError):
            hint = hint or prepare("…", source=True, size=None, out=folder)
            raise DataError(
                f"{path} is missing: no data set was prepared there; make it with: {hint}"
            ) from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    @classmethod
    def parse(cls, raw: bytes, where: str | Path) -> "Manifest":
        """Check a manifest's content; every DataError names the file, as `where` calls it, and the key."""
        try:
            root = TypedJson(parse_json(raw), where)
        except (ValueError, RecursionError) as error:
            raise wrong(where, f"is not valid JSON ({error})") from None
        return _parse(root)


def load_spectrum(folder: str | Path, manifest: Manifest) -> NDArray[np.float64]:
    """E[ŷ ŷᵀ] of the training images, shape (C, C, H, W), float64, in pixel²; see the module's text."""
    path = Path(folder) / manifest.statistics.spectrum_file
    raw = read_checked(path, manifest.statistics.spectrum_sha256)
    try:
        spectrum: NDArray[np.float64] = np.load(raw, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise wrong(path, f"is not a NumPy array ({error})") from None
    channels, height, width = manifest.image_shape
    expected = (channels, channels, height, width)
    if spectrum.shape != expected or spectrum.dtype != np.float64:
        raise wrong(path, f"holds {spectrum.dtype} {spectrum.shape} instead of float64 {expected}")
    return spectrum


def _parse(root: TypedJson) -> Manifest:
    if root["format"].value != FORMAT:
        raise root["format"].fail(f"is {root['format'].value!r}, but this version reads {FORMAT!r}")
    sides = [item.count() for item in root["image_shape"].items()]
    if len(sides) != 3:
        raise root["image_shape"].fail(f"must be [channels, height, width], not {sides}")
    if sides[0] > MOST_CHANNELS or math.prod(sides) > MOST_VALUES:
        raise root["image_shape"].fail(f"is {sides}, more than images here may have")
    named = root["splits"].mapping()
    splits = {
        name: _parse_split(root["splits"][name], name)
        for name in SPLITS
        if name in REQUIRED_SPLITS or name in named
    }
    statistics, images = root["statistics"], {name: split.images for name, split in splits.items()}
    if statistics["images"].count() != images["train"]:
        raise statistics["images"].fail(f"differs from splits.train.images, {images['train']}")
    known = "photographs" in root.mapping()
    return Manifest(
        format=FORMAT,
        dataset=root["dataset"].text(),
        release=root["release"].text(),
        image_shape=(sides[0], sides[1], sides[2]),
        splits=splits,
        statistics=Statistics(
            images=images["train"],
            pixel_mean=statistics["pixel_mean"].numbers(sides[0]),
            pixel_variance=statistics["pixel_variance"].numbers(sides[0]),
            spectrum_file=statistics["spectrum_file"].text(r"\w[\w.-]*\.npy"),
            spectrum_sha256=statistics["spectrum_sha256"].text(SHA256),
        ),
        source=root["source"].mapping(),
        photographs=parse_photographs(root["photographs"], images) if known else None,
    )


def _parse_split(split: TypedJson, name: str) -> Split:
    shards = []
    for number, entry in enumerate(split["shards"].items()):
        shard = Shard(
            file=entry["file"].text(re.escape(shard_name(name, number))),
            images=entry["images"].count(),
            bytes=entry["bytes"].count(),
            sha256=entry["sha256"].text(SHA256),
        )
        if shard.images * _FEWEST_BYTES > shard.bytes:
            raise entry["images"].fail(f"is {shard.images}, more than {shard.bytes} bytes hold")
        shards.append(shard)
    total = sum(shard.images for shard in shards)
    if split["images"].count() != total:
        raise split["images"].fail(f"is {split['images'].value}, but its shards hold {total}")
    return Split(total, tuple(shards))
