"""What runs are doing: each keeps a `status.json`, and `dualscore status` lists them."""

import contextlib
import json
import math
import os
import socket
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import get_type_hints

from dualscore.files.aside import write_aside
from dualscore.files.typed_json import parse_json

STATUS_FILE = "status.json"
STALE = 120.0
"""Seconds without a word after which a run elsewhere counts as dead."""
COLUMNS = ("run", "state", "step", "bits/dim", "bound", "images/s", "stall", "memory", "left", "last word")
SPARE = ("memory", "stall", "bound", "images/s", "left")
"""Columns that matter less, in the order in which a narrow terminal gives them up."""


class State(StrEnum):
    """What a run is doing, or how it ended."""

    training = "training"
    evaluating = "evaluating"
    complete = "complete"
    stopped = "stopped"
    failed = "failed"
    dead = "dead"

    @property
    def running(self) -> bool:
        """Whether a process is at it."""
        return self in (State.training, State.evaluating)


@dataclass
class Status:
    """The content of `status.json`; None where something is not known yet."""

    state: State = State.training
    step: int = 0
    max_steps: int = 0
    bits_per_dim: str | None = None
    bound: str | None = None
    images_per_second: float | None = None
    stall: float | None = None  # fraction of the time that training waits for images
    memory: int | None = None  # bytes at most so far, of the process or of its GPU
    seconds_left: float | None = None
    reason: str | None = None
    skipped_steps: int = 0
    host: str = ""
    process: int = 0
    started: int | None = None
    """When the process began, in clock ticks since the computer did: its number is given to others later."""
    job: str | None = None  # of the cluster's queue
    updated: float = 0.0  # seconds since 1970

    def say(self, folder: Path) -> None:
        """Write it into a run's folder, whole or not at all; where that fails, the run goes on."""
        self.host, self.process = socket.gethostname(), os.getpid()
        self.job, self.started = os.environ.get("SLURM_JOB_ID"), _look(self.process)[1]
        self._write(folder)

    def say_failed(self, folder: Path, reason: str, first: bool) -> None:
        """Write that the run failed, and why; processes after the `first` leave the first's figures alone."""
        said = self if first else Status.read(folder) or self
        said.state, said.reason = State.failed, reason
        (said.say if said is self else said._write)(folder)

    def _write(self, folder: Path) -> None:
        self.updated = time.time()
        content = (json.dumps(asdict(self), indent=1) + "\n").encode()
        with contextlib.suppress(OSError):
            write_aside(folder / STATUS_FILE, content, flush=False)

    @classmethod
    def read(cls, folder: Path) -> "Status | None":
        """Read that of a run's folder; None if it has none that can be read."""
        kinds = get_type_hints(cls)
        try:
            content = parse_json((folder / STATUS_FILE).read_text(encoding="utf-8"))
            found = cls(**{key: value for key, value in content.items() if key in kinds})
            found.state = State(found.state)
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        said = {name: getattr(found, name) for name in kinds}
        if not all(isinstance(said[name], kind) for name, kind in kinds.items()):
            return None
        if not all(math.isfinite(value) for value in said.values() if isinstance(value, float)):
            return None
        if found.state.running and not found.alive():
            found.state = State.dead
        return found

    def alive(self) -> bool:
        """Whether the process that wrote this still runs, as far as can be told from here."""
        if self.host == socket.gethostname():
            state, started = _look(self.process)
            if state is not None:
                return state != "Z" and self.started in (None, started)  # None: written by an older version
            if Path("/proc/self").exists():
                return False
        return time.time() - self.updated < STALE


def _look(process: int) -> tuple[str | None, int | None]:
    """A process's state, a letter, and its start in clock ticks, from /proc; None where that does not say."""
    try:
        told = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None, None
    fields = told.rpartition(b")")[2].split()  # from the third on; the name before may hold anything
    return fields[0].decode(), int(fields[19]) if len(fields) > 19 else None


def all_runs(root: Path) -> tuple[list[list[str]], list[str]]:
    """A row of `COLUMNS` for each run below a folder, the latest word first, and why some stopped."""
    found = [(path.parent, Status.read(path.parent)) for path in root.rglob(STATUS_FILE)]
    known = [(str(folder.relative_to(root)), status) for folder, status in found if status is not None]
    known.sort(key=lambda item: -item[1].updated)
    rows = [[name, *_cells(status, status.state.running)] for name, status in known]
    return rows, [f"{name}: {status.reason}" for name, status in known if status.reason]


def _cells(status: Status, running: bool) -> list[str]:
    return [
        status.state.value + (f" (job {status.job})" if status.job and running else ""),
        f"{status.step:,}/{status.max_steps:,}",
        status.bits_per_dim or "",
        status.bound or "",
        f"{status.images_per_second:,.0f}" if status.images_per_second and running else "",
        f"{status.stall:.1%}" if status.stall is not None and running else "",
        f"{status.memory / 2**30:.1f} GiB" if status.memory else "",
        duration(status.seconds_left) if status.seconds_left is not None and running else "",
        f"{duration(max(0.0, time.time() - status.updated))} ago",
    ]


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
