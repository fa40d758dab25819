"""Photographs scored by several processes at once, each on a device of its own."""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from dualscore.cores import own_cores
from dualscore.errors import ScoreError
from dualscore.scoring.score_files import Outcome
from dualscore.scoring.whole_photographs import ScoreOptions, finish_parts, score_photographs


def score_on_devices(
    path: Path | None, given: Sequence[Path], out: Path, console: Console, options: ScoreOptions, devices: int
) -> Outcome:
    """Score with so many processes, which take pictures in turn; then put their rows together.

    ScoreError if one of them dies; the same command goes on with what is there.
    """
    context = multiprocessing.get_context("spawn")  # after CUDA or threads have begun, forks are not safe
    began, scored = time.monotonic(), 0
    with ProcessPoolExecutor(devices, mp_context=context) as pool:
        parts = {
            pool.submit(_one, path, list(given), out, _share(options, k, devices), devices): k
            for k in range(devices)
        }
        try:
            for done in as_completed(parts):
                scored += done.result()
        except BrokenProcessPool as error:
            raise ScoreError(
                "a process died, perhaps for want of memory: the same command goes on"
            ) from error
    rate = scored, time.monotonic() - began
    return finish_parts(path, given, out, console, replace(options, part=(1, devices)), rate)


def _share(options: ScoreOptions, which: int, devices: int) -> ScoreOptions:
    device = f"cuda:{which}" if options.device == "cuda" else options.device
    workers = max(1, options.workers // devices)
    return replace(options, part=(which + 1, devices), device=device, workers=workers, parquet=False)


def _one(path: Path | None, given: Sequence[Path], out: Path, options: ScoreOptions, devices: int) -> int:
    """Score a part; returns how many images were."""
    torch.set_num_threads(max(1, own_cores() // devices))
    outcome = score_photographs(path, given, out, Console(quiet=True), options, allow_none=True)
    return int(outcome.summary["scored"])
