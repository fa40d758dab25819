"""Synthetic images in the official format, prepared as ImageNet64 is, and what the loader makes of them."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.jobs import Jobs, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import CHIEF, DUAL, Step
from benchmarks.timing import side_by_side
from dualscore.assemble import build_datamodule
from dualscore.data.datamodule import Batch, ImageDataModule, ResumableLoader
from dualscore.images import to_pixels
from dualscore.training.optimizers import obstacle

SIDE = 64


def textures(images: int, seed: int) -> NDArray[np.uint8]:
    """Colour textures with the 1/f spectrum of photographs, uint8, shape (images, 3·64²), channel-major.

    Three fields an image: what all channels share, and two opponent colours of less contrast. Mean and
    contrast differ from image to image; what leaves the range is cut off, as a camera does.

    Args:
        images: how many.
        seed: of the fields.
    """
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :])
    frequency[0, 0] = np.inf  # the mean is drawn apart
    white = generator.standard_normal((images, 3, SIDE, SIDE), dtype=np.float32)
    fields = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(SIDE, SIDE))
    fields /= fields.std(axis=(2, 3), keepdims=True)
    contrast = generator.uniform(0.05, 0.3, (images, 1, 1, 1)) * np.array([1.0, 0.3, 0.2])[:, None, None]
    mixing = np.array([[1.0, 1.0, 0.5], [1.0, 0.0, -1.0], [1.0, -1.0, 0.5]])
    mean = generator.uniform(0.2, 0.8, (images, 1, 1, 1))
    pixels = mean + np.einsum("ck,nkhw->nchw", mixing, contrast * fields)
    return np.clip(np.rint(255.0 * pixels), 0.0, 255.0).astype(np.uint8).reshape(images, -1)


def jobs(setting: Setting) -> Jobs:
    """Preparing them."""
    return {"prepare": partial(prepare, setting)}


def prepare(setting: Setting) -> Row:
    """Write batch files as the official release has them, and shards by `make data`'s own command."""
    files, each, test = (1, 512, 64) if setting.toy else (10, 2048, 512)
    source = setting.work / "official"
    source.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        name, images = ("val_data", test) if number == 0 else (f"train_data_batch_{number}", each)
        np.savez(source / f"{name}.npz", data=textures(images, number))

    with ThreadPoolExecutor(4) as threads:  # numpy lets its draws and transforms run side by side
        list(threads.map(write, range(files + 1)))
    shutil.rmtree(setting.shards, ignore_errors=True)
    start = time.perf_counter()
    setting.prepare("imagenet64", "--src", str(source), "--out", str(setting.shards))
    seconds = time.perf_counter() - start
    shutil.rmtree(source)
    return {"images": files * each + test, "images/s": (files * each + test) / seconds}


def loading(setting: Setting) -> Jobs:
    """The loader alone, and beside the chief step, with few and many processes."""
    return {
        f"{count} loader processes": partial(load, setting, count) for count in (2, 1 if setting.toy else 8)
    }


def load(setting: Setting, workers: int) -> Row:
    """Images a second of the loader, and the share of a step that training waits for it."""
    config = setting.config(DUAL, f"data.workers={workers}")
    able = obstacle(setting.device.type) is None
    step = Step(setting, CHIEF if able else replace(CHIEF, code="eager"))
    batches = _endless(setting, build_datamodule(config))
    turns = 3 if setting.toy else 20

    def alone() -> None:
        for _ in range(turns):
            next(batches)

    def bare() -> None:
        for _ in range(turns):
            step()

    def beside() -> None:
        for batch in islice(batches, turns):
            step.clean.copy_(to_pixels(batch.image, step.clean.shape[1]))
            step()

    times = side_by_side({"alone": alone, "bare": bare, "beside": beside}, 3)
    return {
        "images/s alone": turns * config.data.batch_size / times["alone"].median,
        "ms a step without": 1e3 * times["bare"].median / turns,
        "ms a step with": 1e3 * times["beside"].median / turns,
        "stall": 1.0 - times["bare"].median / times["beside"].median,
    }


def _endless(setting: Setting, data: ImageDataModule) -> Iterator[Batch]:
    """Training batches on the device, moved as Lightning moves them, epoch after epoch."""
    loader = ResumableLoader(data)
    while True:
        for batch in loader:
            yield Batch(*(column.to(setting.device, non_blocking=True) for column in batch))
