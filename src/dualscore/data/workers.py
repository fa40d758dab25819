"""Processes that end with the one that started them; imports no torch, so that they start at once."""

import atexit
import mmap
import multiprocessing.util  # its own last deeds come after ours if it is imported before
import os
import signal
import threading
from multiprocessing.connection import wait
from types import FrameType

LOOK = 2.0
"""Seconds between two looks whether the parent is still there."""
GRACE = 30
"""Seconds that a loader process goes on for after SIGTERM: what Slurm leaves a job to save in by default."""

_leaving = mmap.mmap(-1, 1)
"""Not 0 once the training process is at its end; memory that forked loader processes share."""
atexit.register(_leaving.__setitem__, 0, 1)


def live_with_the_run(worker: int) -> None:  # noqa: ARG001 - PyTorch's signature
    """End with the training process, neither before nor after it; to be called in a loader process.

    Slurm sends a job's signals to all of its processes. PyTorch's loader processes die of SIGTERM at once,
    which fails the run while it could still save. They end with the run instead, and otherwise a while later.
    And they look for their parent too late to see that it was killed while it started them.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    end_with_parent()


def end_with_parent() -> None:
    """End this process, which `multiprocessing` started, as soon as its parent has ended in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A fork's sentinel stays open while a younger sibling lives, which inherited it; under a fork server the
    # parent of this process is another than the one that asked for it.
    forked = getattr(multiprocessing.current_process(), "_start_method", None) == "fork"
    watched = parent.pid if forked else None
    threading.Thread(target=_wait_and_end, args=(parent.sentinel, watched), daemon=True).start()


def _wait_and_end(sentinel: int, parent: int | None) -> None:
    while not wait([sentinel], LOOK) and (parent is None or os.getppid() == parent):
        pass
    os._exit(1)


def _end_later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    if _leaving[0]:
        os._exit(0)
    signal.alarm(GRACE)
