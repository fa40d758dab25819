"""Loader processes and the signals of a job."""

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from dualscore.data.workers import outlive_stop_signals


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
