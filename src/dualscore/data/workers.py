"""Loader processes: which one this is, and how they live beside a run that may be told to stop."""

import atexit
import mmap
import multiprocessing.util  # its own last deeds come after ours if it is imported before
import os
import signal
import threading
import time
from types import FrameType

from torch.utils.data import get_worker_info

GRACE = 30
"""Seconds that a loader process goes on for after SIGTERM: what Slurm leaves a job to save in by default."""
LOOK = 2.0
"""Seconds between two looks whether the training process is still there."""

_leaving = mmap.mmap(-1, 1)
"""Not 0 once the training process is at its end; memory that forked loader processes share."""
atexit.register(_leaving.__setitem__, 0, 1)


def worker_place() -> tuple[int, int]:
    """This loader process among those of its device: (number, how many)."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def live_with_the_run(worker: int) -> None:  # noqa: ARG001 - PyTorch's signature
    """End with the training process, neither before nor after it; to be called in a loader process.

    Slurm sends a job's signals to all of its processes. PyTorch's loader processes die of SIGTERM at once,
    which fails the run while it could still save. They end with the run instead, and otherwise a while later.
    And they look for their parent too late to see that it was killed while it started them.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()


def _end_with(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


def _end_later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    if _leaving[0]:
        os._exit(0)
    signal.alarm(GRACE)
