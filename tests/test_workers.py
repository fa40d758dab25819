"""Loader processes and the signals of a job."""

import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from dualscore.data.workers import GRACE, live_with_the_run
from workspace import ROOT


class Processes(Dataset[int]):
    """Items that are the number of the process that reads them."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return os.getpid()


def late(worker: int, live: Any) -> None:
    """Live with the run only after a while."""
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two processes write at once
    time.sleep(1)
    live(worker)


def test_loader_processes_outlive_a_signal_to_the_whole_job_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    monkeypatch.setattr("dualscore.data.workers.GRACE", 2)
    loader = DataLoader(Processes(), batch_size=None, num_workers=1, worker_init_fn=live_with_the_run())
    batches = iter(loader)
    worker = next(batches)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker, number)
        assert [next(batches) for _ in range(20)] == [worker] * 20
    if start_method == "fork":  # one that imports the module anew has the grace that it has in use
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(batches)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_process_that_fails_does_not_wait_for_its_loader_processes(start: str) -> None:
    code = (
        f"import multiprocessing, sys; multiprocessing.set_start_method({start!r})\n"
        "from test_workers import *\n"
        "batches = iter(DataLoader(Processes(), batch_size=None, num_workers=1, "
        "worker_init_fn=live_with_the_run()))\n"
        "next(batches); batches.itself = batches; sys.exit(3)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    start = time.monotonic()
    finished = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
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
    run = subprocess.Popen(
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
