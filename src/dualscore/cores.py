"""How many cores this process has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Which groups this process is in, and where Linux says what they may use."""


def own_cores() -> int:
    """The cores that this process may run on: a job or a container may have been given a few of many."""
    return max(1, min([_seen(), *map(math.ceil, _quotas())]))


def limit_threads() -> None:
    """Have torch, once it is imported, start as many threads as a container may use: it heeds no quota."""
    if (cores := own_cores()) < _seen():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _seen() -> int:
    # A Mac confines no process.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each group above this process may use, where that is limited."""
    for folder in dict.fromkeys(_groups()):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = (float(n) for name in files for n in (folder / name).read_text().split())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            if quota > 0 and period > 0:
                yield quota / period


def _groups() -> Iterator[Path]:
    """Folders of the groups of version 2 and 1 that this process is in, and of those above."""
    try:
        lines = PROC.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    # In a container its own group is often the top, whatever it is called outside.
    for line in ["0::/", "1:cpu:/", *lines]:
        _, _, rest = line.partition(":")
        kinds, _, name = rest.partition(":")
        if not kinds or "cpu" in kinds.split(","):
            top = CGROUPS / "cpu" if kinds else CGROUPS
            place = Path(*(part for part in name.split("/") if part != ".."))
            yield from (top / above for above in (place, *place.parents))
