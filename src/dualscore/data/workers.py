"""How loader processes live beside a run that may be told to stop."""

import atexit
import mmap
import multiprocessing.util  # noqa: F401 - its own last deeds come after ours if it is imported before
import os
import signal
from types import FrameType

GRACE = 30
"""Seconds that a loader process goes on for after SIGTERM: what Slurm leaves a job to save in by default."""

_leaving = mmap.mmap(-1, 1)
"""Not 0 once the training process is at its end; memory that forked loader processes share."""
atexit.register(_leaving.__setitem__, 0, 1)


def outlive_stop_signals(worker: int) -> None:  # noqa: ARG001 - PyTorch's signature
    """Leave it to the training process to stop when a whole job is told to; to be called in a loader process.

    Slurm sends a job's signals to all of its processes. PyTorch's loader processes die of SIGTERM at once,
    which fails the run while it could still save. They end with the run instead, and otherwise a while later.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    if _leaving[0]:
        os._exit(0)
    signal.alarm(GRACE)
