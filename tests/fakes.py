"""Makers of small files in the official formats, from real photographs; for tests."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.sources.crops import cut
from data_prep.sources.demo import TEST, TRAIN, VAL, locate

Pixels = NDArray[np.uint8]


def photograph_paths() -> dict[str, Path]:
    """Name → file of the photographs that the demo trains and validates on."""
    return {name: locate(*where) for name, where in (TRAIN | VAL).items()}


def photograph(name: str, side: int | None = None) -> Image.Image:
    """A photograph as RGB; with ``side``, its top left square of that many pixels."""
    image = Image.open(locate(*(TRAIN | VAL | TEST)[name])).convert("RGB")
    return image if side is None else image.crop((0, 0, side, side))


def real_images(count: int, size: int, seed: int = 0) -> Pixels:
    """Distinct random crops of real photographs, uint8, shape (count, 3, size, size)."""
    everything = []
    for name in photograph_paths():
        image = photograph(name)
        image = image.reduce(2) if size <= 64 else image
        everything += [grid.reshape(-1, 3, size, size) for grid in cut(image, size, 11, 3)]
    crops = np.concatenate(everything)
    order = np.random.default_rng(seed).permutation(len(crops))
    assert count <= len(order), "too many images asked for"
    return crops[order[:count]]


def write_official_imagenet(
    folder: Path, size: int, train_images: int, val_images: int, form: str = "pickle", batches: int = 2
) -> tuple[Pixels, Pixels, Pixels]:
    """Write ``train_data_batch_1`` …, ``val_data`` as the down-sampled release does; ``form`` pickle or npz.

    Returns:
        The images of the splits train, val (the last tenth of the last batch) and test (all of ``val_data``)
        in order, uint8, shape (N, 3, size, size).
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = real_images(train_images + val_images, size)
    train, val = images[:train_images], images[train_images:]
    kept = train_images - max(1, (train_images // batches) // 10)  # array_split's last part is a smallest one
    parts = {f"train_data_batch_{i + 1}": part for i, part in enumerate(np.array_split(train, batches))}
    for name, part in (parts | {"val_data": val}).items():
        labels = [1 + position % 1000 for position in range(len(part))]
        table = part.reshape(len(part), -1)
        if form == "npz":
            np.savez(folder / f"{name}.npz", data=table, labels=np.array(labels))
        else:
            batch = {"data": table, "labels": labels, "mean": table.mean(axis=0)}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return train[:kept], train[kept:], val


def write_cifar10(
    folder: Path, images_per_batch: int = 20, archive: bool = False
) -> tuple[Pixels, Pixels, Pixels]:
    """Write CIFAR-10's Python version below ``folder``: its folder, or only ``cifar-10-python.tar.gz``.

    Returns:
        The images of the splits train, val (half of the last batch) and test in order, uint8, shape
        (N, 3, 32, 32).
    """
    batches = real_images(6 * images_per_batch, 32).reshape(6, images_per_batch, 3, 32, 32)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    contents = {}
    for name, part in zip(names, batches, strict=True):
        batch = {
            b"data": part.reshape(len(part), -1),
            b"labels": [0] * len(part),
            b"batch_label": name.encode(),
        }
        contents[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    contents["cifar-10-batches-py/readme.html"] = b"<html></html>"
    folder.mkdir(parents=True, exist_ok=True)
    if archive:
        _write_tar(folder / "cifar-10-python.tar.gz", contents)
    else:
        _write_files(folder, contents)
    train, kept = batches[:5].reshape(-1, 3, 32, 32), 5 * images_per_batch - images_per_batch // 2
    return train[:kept], train[kept:], batches[5]


def write_imagenet64_png(
    folder: Path, train: int, val: int, form: str = ".tar"
) -> tuple[Pixels, Pixels, Pixels]:
    """Write the PNG release; ``form`` is .tar, .tar.gz, .zip or "" for folders.

    Returns:
        The images of the splits train, val (the last tenth of the training images) and test in order, uint8,
        shape (N, 3, 64, 64).
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = real_images(train + val, 64)
    for split, part in (("train_64x64", images[:train]), ("valid_64x64", images[train:])):
        contents = {f"{split}/{index:07d}.png": encode(image) for index, image in enumerate(part, start=1)}
        if form == ".zip":
            with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
                for name, content in contents.items():
                    archive.writestr(name, content)
        elif form:
            _write_tar(folder / f"{split}{form}", contents)
        else:
            _write_files(folder, contents)
    kept = train - max(1, train // 10)
    return images[:kept], images[kept:train], images[train:]


def encode(image: Pixels, kind: str = "PNG") -> bytes:
    """A (3, H, W) uint8 image as a file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def _write_tar(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _write_files(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
