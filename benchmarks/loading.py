"""The loader alone, against reading the same bytes, and beside training."""

import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from math import nan
from pathlib import Path

import numpy as np
from timing import peak_bytes

from dualscore.data.datamodule import Batch
from dualscore.data.epoch_plan import EpochPlan
from dualscore.data.reader import TrainingBatches
from dualscore.data.shards import Shard, entry_name, shard_name
from dualscore.settings.config import ExperimentConfig

SHARDS, BYTES, IMAGES, BATCH, STREAMS = 8, 2**25, 4096, 128, 8
STEPS = 8


def make_shards(folder: Path, shape: tuple[int, int, int], first: int, count: int) -> list[Shard]:
    """Shards of random images, as many as are 32 MB, or fewer."""
    size = int(np.prod(shape))
    images = min(BYTES // size, IMAGES)
    made = []
    generator = np.random.default_rng(0)
    for number in range(first, first + count):
        path = folder / shard_name("train", number)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(images):
                entry = tarfile.TarInfo(entry_name(number * images + index))
                entry.size = size
                tar.addfile(entry, io.BytesIO(generator.bytes(size)))
        made.append(Shard(path.name, images, path.stat().st_size, "0" * 64))
    return made


def epoch(folder: Path, shape: tuple[int, int, int], shards: list[Shard], batch: int) -> Iterator[Batch]:
    """An epoch of shuffled batches, read in this process, the buffer as large for any number of shards."""
    streams = STREAMS if batch % STREAMS == 0 else 1
    plan = EpochPlan(tuple(shards), batch, streams, 1, 0, 0)
    buffer = sum(shard.images for shard in shards[:SHARDS]) // 4
    return iter(TrainingBatches(folder, shape, plan, range(streams), buffer))


def rate(work: Callable[[], int]) -> float:
    """What a function counts, a second."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def loader_figures(
    folder: Path, config: ExperimentConfig, step: Callable[[], object], repeats: int
) -> dict[str, float]:
    """Rates a core, their ratios, the memory's growth with the data set, and the time training waits.

    Args:
        folder: an empty folder.
        config: for the images' shape and the batch.
        step: a training step on a batch of the experiment's size.
        repeats: how often rates are measured.

    Returns:
        The figures by name.
    """
    shape = (config.data.channels, config.data.size, config.data.size)
    shards = make_shards(folder, shape, 0, SHARDS)

    def load() -> int:
        return sum(len(batch.image) for batch in epoch(folder, shape, shards, BATCH))

    def whole_files() -> int:
        return sum(shard.images for shard in shards if (folder / shard.file).read_bytes())

    def chunks() -> int:
        for shard in shards:
            with (folder / shard.file).open("rb") as file:
                while file.read(2**20):
                    pass
        return sum(shard.images for shard in shards)

    def memory(many: list[Shard]) -> int | None:
        return peak_bytes(lambda: sum(len(batch.image) for batch in epoch(folder, shape, many, BATCH)))

    larger = [*shards, *make_shards(folder, shape, SHARDS, 3 * SHARDS)]
    peaks = memory(shards), memory(larger)

    def from_disk(work: Callable[[], int]) -> Callable[[], int]:
        def cold() -> int:
            for shard in shards:
                with (folder / shard.file).open("rb") as file:
                    os.fsync(file.fileno())  # what is not written yet cannot be forgotten
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return work()

        return cold

    works = {
        "loader": load,
        "files": whole_files,
        "chunks": chunks,
        "loader, disk": from_disk(load),
        "files, disk": from_disk(whole_files),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            found = rate(work)
            if turn:
                rates[name].append(found)
    middle = {name: statistics.median(values) for name, values in rates.items()}

    alone, beside = [], []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        between = time.perf_counter()
        for _ in islice(epoch(folder, shape, shards, config.data.batch_size), STEPS):
            step()
        if turn:
            alone.append(between - start)
            beside.append(time.perf_counter() - between)
    return {
        "loader, images/s a core, shuffled": middle["loader"],
        "of reading the same files from the disk, both without its cache": middle["loader, disk"]
        / middle["files, disk"],
        "of reading the same files from the cache": middle["loader"] / middle["files"],
        "of reading them 1 MiB at a time and forgetting it": middle["loader"] / middle["chunks"],
        "peak memory of an epoch over a set 4 times larger, of that over the set": (peaks[1] or nan)
        / (peaks[0] or nan),
        "stall, of a step with the loader in the same process": 1
        - statistics.median(alone) / statistics.median(beside),
    }
