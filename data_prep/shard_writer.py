"""Writes one shard and, after it, a sidecar saying what is in it; either is whole or absent."""

import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.plan import Images, ShardJob
from data_prep.statistics import Sums
from dualscore.data.shards import Shard, entry_name
from dualscore.files.aside import write_aside

BUILD_FOLDER = ".build"
CHUNK = 512


@dataclass(frozen=True)
class Finished:
    """What a sidecar says about a finished shard; only training shards carry sums."""

    shard: Shard
    sums: Sums | None


class _Hashing(io.RawIOBase):
    """A file for writing that keeps the SHA-256 and the size of what went through it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def close(self) -> None:
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        super().close()


def write_shard(out: Path, job: ShardJob, images: Images, image_shape: tuple[int, int, int]) -> None:
    """Write ``job``'s shard into ``out``, then its sidecar.

    The shard is written under a name of its own, flushed and renamed, so a killed build leaves no half one.
    """
    aside = out / f".{job.file}.{os.getpid()}.tmp"
    sums = Sums.zeros(image_shape) if job.split == "train" else None
    with (
        _Hashing(aside) as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for start in range(job.start, job.stop, CHUNK):
            chunk = images.take(start, min(start + CHUNK, job.stop))
            _add_images(tar, chunk, job.first + start - job.start)
            if sums is not None:
                sums.add(chunk)
    os.replace(aside, out / job.file)
    shard = Shard(job.file, job.stop - job.start, file.size, file.digest.hexdigest())
    _write_sidecar(out, Finished(shard, sums))


def _add_images(tar: tarfile.TarFile, images: NDArray[np.uint8], first: int) -> None:
    for index, image in enumerate(images, start=first):
        # tarfile's defaults fix owner, mode and time, so that the same images give the same bytes
        entry = tarfile.TarInfo(entry_name(index))
        entry.size = image.nbytes
        tar.addfile(entry, io.BytesIO(image.tobytes()))


def sidecar_path(out: Path, file: str) -> Path:
    """Where the sidecar of a shard lies."""
    return out / BUILD_FOLDER / f"{file}.npz"


def _write_sidecar(out: Path, finished: Finished) -> None:
    arrays = {
        "images": np.array(finished.shard.images),
        "bytes": np.array(finished.shard.bytes),
        "sha256": np.array(finished.shard.sha256),
    }
    if finished.sums is not None:
        sums = finished.sums
        arrays |= {"pixels": sums.pixels, "squares": sums.squares, "moments": sums.moments}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_aside(sidecar_path(out, finished.shard.file), buffer.getvalue())


def read_finished(out: Path, job: ShardJob) -> Finished | None:
    """What is known about a job's shard, or None if it still has to be made."""
    try:
        with np.load(sidecar_path(out, job.file), allow_pickle=False) as sidecar:
            arrays = dict(sidecar)
        size = (out / job.file).stat().st_size
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if size != arrays["bytes"] or arrays["images"] != job.stop - job.start:
        return None
    shard = Shard(job.file, int(arrays["images"]), size, str(arrays["sha256"]))
    if job.split != "train":
        return Finished(shard, None)
    return Finished(shard, Sums(shard.images, arrays["pixels"], arrays["squares"], arrays["moments"]))
