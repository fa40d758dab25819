"""Runs independent jobs in worker processes that end together with the program that started them."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import TypeVar

from dualscore.data.workers import end_with_parent, make_room, starting
from dualscore.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
PENDING_PER_WORKER = 4
OPEN_EACH = 2
"""Files that this process has open for a worker: its end, and what it is started by."""


class Stopped(Exception):  # noqa: N818 - not an error: another job failed, or the user pressed Ctrl-C
    """Raised inside a job when the others have been told to stop."""


_stop: Event | None = None


def stop_if_told() -> None:
    """End a long job early when its result is no longer wanted; call it between steps."""
    if _stop is not None and _stop.is_set():
        raise Stopped


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    end_with_parent()  # it would otherwise wait for jobs for ever


def run(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Call ``function`` on every job.

    Args:
        function: must be importable by name; a single worker or job runs it in this process.
        jobs: picklable arguments.
        workers: number of processes.
        on_result: called here as each job ends, in any order.

    Returns:
        The results in the order of the jobs.

    Raises:
        DataError: if a worker process dies, or too few files may be open; other exceptions are those of the
            first job to fail.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        results = []
        for job in jobs:
            results.append(function(job))
            if on_result is not None:
                on_result(results[-1])
        return results
    make_room(workers, 0, OPEN_EACH)
    # not forked: a fork copies the locks of the progress bar's thread
    context = multiprocessing.get_context("spawn")
    with starting():
        stop = context.Event()
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(stop,))
    with pool as executor:
        try:
            return _drive(executor, function, jobs, workers * PENDING_PER_WORKER, on_result)
        except BrokenProcessPool:
            raise DataError(
                "a worker process died, most often for want of memory: try fewer --workers"
            ) from None
        finally:
            stop.set()
            executor.shutdown(cancel_futures=True)


def _drive(
    executor: ProcessPoolExecutor,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    most_pending: int,
    on_result: Callable[[Result], None] | None,
) -> list[Result]:
    results: dict[int, Result] = {}
    pending: dict[Future[Result], int] = {}

    def collect() -> None:
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            results[pending.pop(future)] = future.result()
            if on_result is not None:
                on_result(future.result())

    for number, job in enumerate(jobs):
        if len(pending) >= most_pending:
            collect()
        with starting():
            future = executor.submit(function, job)
        pending[future] = number
    while pending:
        collect()
    return [results[number] for number in sorted(results)]
