"""Times things side by side, counts their operations, and measures the memory they take."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Time(NamedTuple):
    """Seconds: the median and the range over repeats."""

    median: float
    low: float
    high: float


def synchronize() -> None:
    """Wait until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def side_by_side(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Time]:
    """Run all jobs once to warm up, then in turns, forwards and backwards; nothing else may run beside.

    Args:
        jobs: what to time.
        repeats: turns.

    Returns:
        The time of each.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name in list(jobs)[:: 1 if turn % 2 else -1]:
            synchronize()
            start = time.perf_counter()
            jobs[name]()
            synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: Time(statistics.median(t), min(t), max(t)) for name, t in times.items()}


def peak_bytes(job: Callable[[], object]) -> int | None:
    """The memory that a job takes above what is taken when it starts; None where that cannot be measured.

    On a CPU the resident set is what counts, so each job should have a process of its own.
    """
    job()  # what is allocated once
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    job()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return 1024 * int(line.split()[1])


def matmul_rate(device: torch.device, repeats: int, size: int = 2048) -> float:
    """Floating-point operations a second of a large single-precision matrix product."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / side_by_side({"product": lambda: a @ b}, repeats)["product"].low


class Counter(TorchDispatchMode):
    """Counts floating-point operations as `FlopCounterMode` does, which cannot follow `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count one operator."""
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops(job: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and matrix products."""
    with Counter() as counter:
        job()
    return counter.total
