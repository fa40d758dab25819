"""Loader processes and the signals of a job."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.utils.data import Dataset

import forking
from dualscore.data.loader import Loader
from dualscore.data.workers import GRACE
from workspace import ROOT


class Reader(NamedTuple):
    """The number of the process that reads an item."""

    process: int


class Processes(Dataset[Reader]):
    """Items that tell which process reads them."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Reader:
        time.sleep(0.01)
        return Reader(os.getpid())


def late(worker: int, live: Any) -> None:
    """Live with the run only after a while."""
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two processes write at once
    time.sleep(1)
    live(worker)


def test_loader_processes_outlive_a_signal_to_the_whole_job_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    monkeypatch.setattr("dualscore.data.workers.GRACE", 2)
    batches = iter(Loader(Processes(), 1, asked_for=range(10_000)))
    worker = next(batches).process
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
        if start_method == "forkserver":
            os.kill(parent, number)
        assert [next(batches).process for _ in range(20)] == [worker] * 20
    if start_method == "fork":  # one that imports the module anew has the grace that it has in use
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(batches)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_process_that_fails_does_not_wait_for_its_loader_processes(start: str) -> None:
    code = (
        f"import multiprocessing, sys; multiprocessing.set_start_method({start!r})\n"
        "from test_workers import *\n"
        "batches = iter(Loader(Processes(), 1, asked_for=range(100)))\n"
        "next(batches); kept = [batches]; kept.append(kept); sys.exit(3)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    start = time.monotonic()
    finished = forking.run([sys.executable, "-c", code], env=environment)
    assert finished.returncode == 3
    assert time.monotonic() - start < GRACE


LATE = """
import multiprocessing, sys
from functools import partial
multiprocessing.set_start_method(sys.argv[1])
from torch.utils.data import DataLoader
from dualscore.data.workers import live_with_the_run
from test_workers import Processes, late

live = partial(late, live=live_with_the_run())
next(iter(DataLoader(Processes(), batch_size=None, num_workers=2, worker_init_fn=live)))
"""


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_loader_process_whose_run_is_killed_as_it_starts_ends_too(start: str) -> None:
    """PyTorch's own look begins with whatever parent it then finds: that would be somebody else."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    run = forking.Popen(
        [sys.executable, "-c", LATE, start], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.pid not in {int(run.stdout.readline()) for _ in range(2)}
    run.kill()
    run.wait()
    # The loader process holds the other end of the pipe: at its end, not before.
    ended, _, _ = select.select([run.stdout], [], [], 30)
    assert ended
    assert run.stdout.read() == ""
