"""Builds a data set: plan, shards in parallel, statistics, manifest. Killed, it goes on where it was."""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import pool, progress
from data_prep.plan import Plan, Request, ShardJob, Source, Unit, check_splits, lay_out
from data_prep.same_request import STAMPS_FILE, make_fingerprint, make_stamps, plan_path, refuse_other_content
from data_prep.shard_writer import BUILD_FOLDER, Finished, read_finished, sidecar_path, write_shard
from data_prep.statistics import Sums
from dualscore.data.photograph_numbers import Photographs
from dualscore.data.shards import FORMAT, MANIFEST_FILE, SPLITS, Manifest, Split, Statistics
from dualscore.errors import DataError
from dualscore.files.aside import write_aside
from dualscore.terminal.console import shared_console

SPECTRUM_FILE, PHOTOGRAPHS_FILE = "spectrum.npy", "photographs.npz"
WARNINGS_SHOWN = 20
WARNINGS_KEPT = 200


@dataclass(frozen=True)
class _UnitJob:
    unit: Unit
    shards: tuple[ShardJob, ...]
    out: Path
    image_shape: tuple[int, int, int]


def build(request: Request, source: Source, out: Path) -> Manifest:
    """Prepare a data set in ``out``, or finish one that was begun there by the same request.

    Args:
        request: what to prepare.
        source: reads that kind of data set.
        out: folder to write.

    Returns:
        The manifest of the finished data set.

    Raises:
        DataError: if the source is unusable or ``out`` holds something else.
    """
    stamps = make_stamps(request, source.find(request.src))
    fingerprint = make_fingerprint(request, stamps)
    refuse_other_content(out, fingerprint, stamps)
    if (manifest := _complete(out)) is not None:
        _say(f"already complete: {out}")
        return manifest
    plan = source.plan(request)
    check_splits(plan, request)
    _warn(plan)
    (out / BUILD_FOLDER).mkdir(parents=True, exist_ok=True)
    with _only_build(out):
        for leftover in [*out.glob(".*.tmp"), *(out / BUILD_FOLDER).glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        (out / MANIFEST_FILE).unlink(missing_ok=True)
        write_aside(plan_path(out), json.dumps(fingerprint, indent=1).encode())
        write_aside(out / BUILD_FOLDER / STAMPS_FILE, json.dumps(stamps).encode())
        layout = lay_out(plan, request.images_per_shard)
        _make_shards(layout, plan, out, request.workers)
        manifest = _finish(layout, plan, request, out)
    return manifest


def preview(request: Request, source: Source, out: Path) -> list[tuple[str, str]]:
    """What building would do, as far as that writes nothing.

    Args:
        request: what to prepare.
        source: reads that kind of data set.
        out: folder that would be written.

    Returns:
        Rows of a name and what it is.

    Raises:
        DataError: if the source is unusable or ``out`` holds something else.
    """
    stamps = make_stamps(request, source.find(request.src))
    refuse_other_content(out, make_fingerprint(request, stamps), stamps)
    plan = source.plan(request)
    check_splits(plan, request)
    _warn(plan)
    layout = lay_out(plan, request.images_per_shard)
    shards = [shard for _, jobs in layout for shard in jobs]
    counts = plan.counts
    size = sum(counts.values()) * int(np.prod(plan.image_shape)) / 2**20
    there = sum((out / shard.file).exists() for shard in shards)
    found = f"{len(stamps)} files" if stamps else "shipped with the installed packages"
    return [
        ("source", f"{request.src or request.dataset}, {found}: {plan.release}"),
        *(
            (split, f"{count:,} images of {'×'.join(map(str, plan.image_shape))}{_of(plan, split)}")
            for split, count in counts.items()
        ),
        ("work", f"{len(shards)} shards, {size:,.0f} MB of pixels, by {request.workers} processes"),
        *([("there", f"{there} shards already, which stay")] if there else []),
    ]


def _of(plan: Plan, split: str) -> str:
    """Of how many photographs a split's images are, in words."""
    if not plan.photographs:
        return ""
    count = len(plan.photographs[split].sha256)
    return f", of {count:,} photograph{'s' * (count > 1)}"


def _say(text: str) -> None:
    shared_console().print(text, soft_wrap=True)


def _warn(plan: Plan) -> None:
    for warning in plan.warnings[:WARNINGS_SHOWN]:
        _say(f"warning: {warning}")
    if len(plan.warnings) > WARNINGS_SHOWN:
        _say(f"warning: … and {len(plan.warnings) - WARNINGS_SHOWN} more like these")


def _complete(out: Path) -> Manifest | None:
    """The manifest, if this request was already finished and nothing is missing since."""
    if not (out / MANIFEST_FILE).exists():
        return None
    try:
        return Manifest.load(out)
    except DataError as error:
        _say(f"warning: {error}; doing so now")
        return None


@contextmanager
def _only_build(out: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends."""
    with (out / BUILD_FOLDER / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out} is being built by another process: wait for it or stop it") from None
        except OSError:
            pass  # a network file system without locks
        yield


def _make_shards(layout: list[tuple[Unit, list[ShardJob]]], plan: Plan, out: Path, workers: int) -> None:
    images = {shard.file: shard.stop - shard.start for _, shards in layout for shard in shards}
    jobs = []
    for unit, shards in layout:
        missing = tuple(shard for shard in shards if read_finished(out, shard) is None)
        for shard in missing:
            sidecar_path(out, shard.file).unlink(missing_ok=True)
        if missing:
            jobs.append(_UnitJob(unit, missing, out, plan.image_shape))
    with progress.bar("preparing", sum(images.values()), "images") as show:

        def update() -> None:
            finished = (name.removesuffix(".npz") for name in os.listdir(out / BUILD_FOLDER))
            show(sum(images.get(file, 0) for file in finished))

        with progress.polling(update):
            pool.run(_produce, jobs, workers)


def _produce(job: _UnitJob) -> None:
    with job.unit.open() as images:
        for shard in job.shards:
            pool.stop_if_told()
            write_shard(job.out, shard, images, job.image_shape)


def _finish(layout: list[tuple[Unit, list[ShardJob]]], plan: Plan, request: Request, out: Path) -> Manifest:
    sums = Sums.zeros(plan.image_shape)
    shards: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for _, jobs in layout:
        for job in jobs:
            finished = _read(out, job)
            shards[job.split].append(finished.shard)
            if finished.sums is not None:
                sums.merge(finished.sums)
    mean, variance = sums.mean_and_variance()
    spectrum = io.BytesIO()
    np.save(spectrum, sums.spectrum())
    write_aside(out / SPECTRUM_FILE, spectrum.getvalue())
    manifest = Manifest(
        format=FORMAT,
        dataset=request.dataset,
        release=plan.release,
        image_shape=plan.image_shape,
        splits={
            split: Split(sum(s.images for s in made), tuple(made)) for split, made in shards.items() if made
        },
        statistics=Statistics(
            images=sums.images,
            pixel_mean=mean,
            pixel_variance=variance,
            spectrum_file=SPECTRUM_FILE,
            spectrum_sha256=hashlib.sha256(spectrum.getvalue()).hexdigest(),
        ),
        source={**plan.source, "warnings": list(plan.warnings[:WARNINGS_KEPT])},
        photographs=_write_photographs([unit for unit, _ in layout], plan, out),
    )
    manifest.save(out)
    for sidecar in (out / BUILD_FOLDER).glob("*.npz"):
        sidecar.unlink()
    return manifest


def _write_photographs(units: list[Unit], plan: Plan, out: Path) -> Photographs | None:
    """Write which photograph each image is of; units come in their splits' order."""
    if plan.photographs is None:
        return None
    if not plan.photographs:
        return Photographs()
    numbers = {
        split: np.concatenate([unit.numbers() for unit in units if unit.split == split])
        for split in plan.photographs
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **numbers)  # equal numbers give equal bytes
    content = buffer.getvalue()
    write_aside(out / PHOTOGRAPHS_FILE, content)
    return Photographs(PHOTOGRAPHS_FILE, hashlib.sha256(content).hexdigest(), dict(plan.photographs))


def _read(out: Path, job: ShardJob) -> Finished:
    finished = read_finished(out, job)
    if finished is None:
        raise DataError(f"{out / job.file} disappeared during the build: run the same command again")
    return finished
