"""Reads a whole data set again and compares it with its manifest."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from data_prep import pool, progress
from data_prep.statistics import CHUNK, Sums
from dualscore.data.shards import MANIFEST_FILE, Manifest, Shard, entry_name, load_spectrum
from dualscore.errors import DataError
from dualscore.files.tars import forget_members

PROBLEMS_SHOWN = 20
TOLERANCE = 1e-9  # sums in another order differ by rounding only


@dataclass(frozen=True)
class _Job:
    path: Path
    shard: Shard
    first: int
    image_shape: tuple[int, int, int]
    summed: bool


@dataclass(frozen=True)
class _Report:
    images: int
    problems: list[str]
    sums: Sums | None


def verify(out: Path, workers: int) -> list[str]:
    """Read a whole data set again.

    Args:
        out: its folder.
        workers: number of processes.

    Returns:
        The problems found, at most 20, one line each; none if all is well.

    Raises:
        DataError: if the manifest itself is missing or broken.
    """
    manifest = Manifest.read(out)
    jobs = []
    for name, split in manifest.splits.items():
        first = 0
        for shard in split.shards:
            jobs.append(_Job(out / shard.file, shard, first, manifest.image_shape, name == "train"))
            first += shard.images
    done = 0
    with progress.bar("verifying", sum(job.shard.images for job in jobs), "images") as show:

        def advance(report: _Report) -> None:
            nonlocal done
            done += report.images
            show(done)

        reports = pool.run(_check_shard, jobs, workers, advance)
    problems = [problem for report in reports for problem in report.problems]
    sums = None
    if not problems:
        sums = Sums.zeros(manifest.image_shape)
        for report in reports:
            if report.sums is not None:
                sums.merge(report.sums)
    problems += _check_statistics(out, manifest, sums)
    problems += _check_photographs(out, manifest)
    if len(problems) > PROBLEMS_SHOWN:
        return [*problems[: PROBLEMS_SHOWN - 1], f"… and {len(problems) - PROBLEMS_SHOWN + 1} more problems"]
    return problems


def _check_shard(job: _Job) -> _Report:
    pool.stop_if_told()
    sums = Sums.zeros(job.image_shape) if job.summed else None
    problems: list[str] = []
    try:
        with job.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != job.shard.sha256:
                problems.append(f"{job.path} has another checksum than the manifest says")
            file.seek(0)
            count = _check_entries(file, job, sums)
            if count != job.shard.images:
                problems.append(f"{job.path} holds {count} images, but the manifest says {job.shard.images}")
    except ValueError as error:
        problems.append(f"{job.path}: {error}")
    except (tarfile.TarError, OSError) as error:
        problems.append(f"{job.path} cannot be read whole: {error}")
    return _Report(job.shard.images, problems, sums)


def _check_entries(file: IO[bytes], job: _Job, sums: Sums | None) -> int:
    """Count the entries of a shard and sum their images; ValueError at the first wrong one."""
    size = int(np.prod(job.image_shape))
    chunk: list[bytes] = []
    count = 0
    for name, image in _entries(file, size):
        expected = entry_name(job.first + count)
        if name != expected:
            raise ValueError(f"entry {count} is {name} instead of {expected}")
        if len(image) != size:
            found = len(image) if len(image) <= size else "more"
            raise ValueError(f"entry {name} has {found} bytes instead of {size}")
        count += 1
        chunk.append(image)
        if len(chunk) == CHUNK or count == job.shard.images:
            if sums is not None:
                sums.add(np.frombuffer(b"".join(chunk), np.uint8).reshape(-1, *job.image_shape))
            chunk = []
    return count


def _entries(file: IO[bytes], most: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents, of no entry more than one byte too many: a sparse one could claim any size."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (entry := tar.next()) is not None:
            forget_members(tar)
            content = tar.extractfile(entry) if entry.isfile() else None  # a link is followed nowhere
            yield entry.name, content.read(most + 1) if content is not None else b""


def _check_statistics(out: Path, manifest: Manifest, sums: Sums | None) -> list[str]:
    """Check the spectrum's file, and compare all statistics if the images could be summed."""
    try:
        spectrum = load_spectrum(out, manifest)
    except DataError as error:
        return [str(error)]
    if sums is None:
        return []
    problems = []
    mean, variance = sums.mean_and_variance()
    for key, stored, computed in (
        ("statistics.pixel_mean", manifest.statistics.pixel_mean, mean),
        ("statistics.pixel_variance", manifest.statistics.pixel_variance, variance),
    ):
        if not np.allclose(stored, computed, rtol=TOLERANCE, atol=1e-12):
            problems.append(f"{out / MANIFEST_FILE}: {key} is {stored}, but the images give {computed}")
    if not np.allclose(spectrum, sums.spectrum(), rtol=TOLERANCE, atol=1e-12):
        path = out / manifest.statistics.spectrum_file
        problems.append(f"{path} is not the spectrum of the training images")
    return problems


def _check_photographs(out: Path, manifest: Manifest) -> list[str]:
    """Check which photograph each image is said to be of: a number for each image, an image of each."""
    if manifest.photographs is None:
        return []
    try:
        numbers = manifest.photographs.load(out, manifest.images)
    except DataError as error:
        return [str(error)]
    problems = []
    for split, array in numbers.items():
        told = manifest.photographs.splits[split]
        for number in set(range(len(told.sha256))) - set(array.tolist()):
            path = out / manifest.photographs.file
            problems.append(f"{path} has no image of {told.name(number)}, a photograph of {split}")
    return problems
