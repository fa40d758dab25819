"""How many cores this process has."""

import os


def own_cores() -> int:
    """The cores that this process may run on: a job may have been given a few of many."""
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
