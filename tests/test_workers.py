"""Loader processes and the signals of a job."""

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from dualscore.data.workers import GRACE, outlive_stop_signals
from workspace import ROOT


class Processes(Dataset[int]):
    """Items that are the number of the process that reads them."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return os.getpid()


def test_loader_processes_outlive_a_signal_to_the_whole_job_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dualscore.data.workers.GRACE", 2)
    loader = DataLoader(Processes(), batch_size=None, num_workers=1, worker_init_fn=outlive_stop_signals)
    batches = iter(loader)
    worker = next(batches)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker, number)
        assert [next(batches) for _ in range(20)] == [worker] * 20
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches)


def test_a_process_that_fails_does_not_wait_for_its_loader_processes() -> None:
    code = (
        "import sys; from test_workers import *\n"
        "batches = iter(DataLoader(Processes(), batch_size=None, num_workers=1, "
        "worker_init_fn=outlive_stop_signals))\n"
        "next(batches); batches.itself = batches; sys.exit(3)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    start = time.monotonic()
    finished = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert finished.returncode == 3
    assert time.monotonic() - start < GRACE
