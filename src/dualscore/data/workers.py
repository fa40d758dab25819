"""Processes that end with the one that started them; imports no torch, so that they start at once."""

import atexit
import multiprocessing.queues
import multiprocessing.util  # its own last deeds come after ours if it is imported before
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.connection import wait
from multiprocessing.synchronize import Semaphore
from types import FrameType

from dualscore.errors import DataError
from dualscore.files.plain_text import one_line

LOOK = 2.0
"""Seconds between two looks whether the parent is still there."""
GRACE = 30
"""Seconds that a loader process goes on for after SIGTERM: what Slurm leaves a job to save in by default."""
OPEN_EACH = 8
"""Files that the training process opens for a loader process, in training and in validation together."""
OPEN_ELSE = 20
"""Files that come and go besides: checkpoints, events, a log, modules."""
_TOLD = (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""What a whole job is told, each of its processes, and only the run is to act on."""


@contextmanager
def out_of_reach() -> Iterator[None]:
    """Start processes that signals of a job do not reach until `live_with_the_run`; others, never.

    Under Python's fork server, what such a signal ends is the server, and with it all that it started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _leaving(method: str) -> Semaphore:
    """Above 0 once this process is at its end, as processes see that it starts by a method."""
    with out_of_reach():  # a process that removes it in the end, where this one cannot
        leaving = multiprocessing.get_context(method).Semaphore(0)
    atexit.register(leaving.release)
    return leaving


def live_with_the_run() -> Callable[[int], None]:
    """What a loader process calls first, to end with this process, neither before nor after it.

    Slurm sends a job's signals to all of its processes, a terminal Ctrl-C and its own end. PyTorch's loader
    processes die of SIGTERM at once, which fails the run while it could still save. They end with the run
    instead, and otherwise a while later.
    And they look for their parent too late to see that it was killed while it started them.
    """
    method = multiprocessing.get_start_method()
    # A fork server that has imported what they need starts them at once, and they share its memory.
    multiprocessing.set_forkserver_preload(["__main__", "dualscore.data.datamodule"])
    return partial(_live_with_the_run, _leaving(method), method == "fork")


def _live_with_the_run(leaving: Semaphore, forked: bool, worker: int) -> None:  # noqa: ARG001 - PyTorch's call
    def end_later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        if leaving.acquire(block=False):
            leaving.release()  # for the others
            os._exit(0)
        signal.alarm(GRACE)

    signal.set_wakeup_fd(-1)  # the run's, which is not to be told what is meant for this process
    for told in _TOLD:
        signal.signal(told, end_later if told == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD)
    # The thread that sends batches would tell of one that it cannot send, and go on with the next.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]
    end_with_parent(forked)


def _cannot_send(error: Exception, what: object) -> None:  # noqa: ARG001 - multiprocessing's signature
    reason = one_line(f"{type(error).__name__}: {error}")
    print(f"a loader process ends: it cannot send a batch ({reason})", file=sys.stderr, flush=True)
    os._exit(1)


def end_with_parent(forked: bool = False) -> None:
    """End this process, which `multiprocessing` started, as soon as its parent has ended in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A fork's sentinel stays open while a younger sibling lives, which inherited it; under a fork server the
    # parent of this process is another than the one that asked for it.
    watched = parent.pid if forked else None
    threading.Thread(target=_wait_and_end, args=(parent.sentinel, watched), daemon=True).start()


def _wait_and_end(sentinel: int, parent: int | None) -> None:
    while not wait([sentinel], LOOK) and (parent is None or os.getppid() == parent):
        pass
    os._exit(1)


def make_room(workers: int, open_files: int, each: int = OPEN_EACH) -> None:
    """See to it that this process may open files, `each` for a worker; DataError names the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + each * workers + open_files + OPEN_ELSE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise DataError(
            f"{needed} files must be open at once ({open_files} of data, {workers} worker processes), but "
            f"the limit is {hard}: raise it (ulimit -n {needed}), or use fewer streams or workers"
        )
    # A Mac refuses a soft limit without end, though its hard one has none.
    most = needed if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def starting() -> Iterator[None]:
    """Say what processes need where they cannot be started, and end those of them that were."""
    before = multiprocessing.active_children()
    try:
        yield
    except (OSError, EOFError) as error:  # the latter where the server that forks them was killed
        for process in multiprocessing.active_children():
            if process not in before:  # it would wait for work, and this process for it
                process.kill()  # SIGTERM does not reach it yet
        # PyTorch's iterator, of which a part is missing, would complain of that in a traceback.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = hook
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"processes cannot be started ({reason}): they need room in /dev/shm, "
            f"a TMPDIR of a short name (now {tempfile.gettempdir()}), files (ulimit -n) and to be allowed "
            "(ulimit -u)"
        ) from error
