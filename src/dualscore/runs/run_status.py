"""What runs are doing: each keeps a `status.json`, and `dualscore status` lists them."""

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from dualscore.files.aside import write_aside
from dualscore.terminal.boxes import fitting

STATUS_FILE = "status.json"
STALE = 120.0
"""Seconds without a word after which a run elsewhere counts as dead."""


class State(StrEnum):
    """What a run is doing, or how it ended."""

    training = "training"
    evaluating = "evaluating"
    complete = "complete"
    stopped = "stopped"
    failed = "failed"
    dead = "dead"


_NUMBERS = {
    "step", "max_steps", "images_per_second", "stall", "memory", "seconds_left", "skipped_steps", "process",
    "started", "updated",
}  # fmt: skip


@dataclass
class Status:
    """The content of `status.json`; None where something is not known yet."""

    state: State = State.training
    step: int = 0
    max_steps: int = 0
    bits_per_dim: str | None = None
    bound: str | None = None
    images_per_second: float | None = None
    stall: float | None = None
    """Fraction of the time that training waits for images."""
    memory: int | None = None
    """Bytes at most so far, of the process or of its GPU."""
    seconds_left: float | None = None
    reason: str | None = None
    skipped_steps: int = 0
    host: str = ""
    process: int = 0
    started: int | None = None
    """When the process began, in clock ticks since the computer did: its number is given to others later."""
    job: str | None = None
    """Of the cluster's queue."""
    updated: float = 0.0
    """Seconds since 1970."""

    def say(self, folder: Path) -> None:
        """Write it into a run's folder, whole or not at all; where that fails, the run goes on."""
        self.host, self.process, self.updated = socket.gethostname(), os.getpid(), time.time()
        self.job, self.started = os.environ.get("SLURM_JOB_ID"), _look(self.process)[1]
        self._write(folder)

    def say_failed(self, folder: Path, reason: str, first: bool) -> None:
        """Write that the run failed, and why; processes after the `first` leave the first's figures alone."""
        said = self if first else Status.read(folder) or self
        said.state, said.reason = State.failed, reason
        if said is self:
            said.say(folder)
        else:
            said.updated = time.time()
            said._write(folder)

    def _write(self, folder: Path) -> None:
        content = (json.dumps(asdict(self), indent=1) + "\n").encode()
        with contextlib.suppress(OSError):
            write_aside(folder / STATUS_FILE, content, flush=False)

    @classmethod
    def read(cls, folder: Path) -> "Status | None":
        """Read that of a run's folder; None if it has none that can be read."""
        try:
            content = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            found = cls(**{key: value for key, value in content.items() if key in known})
            found.state = State(found.state)
            for field in fields(cls):
                value, default = getattr(found, field.name), field.default
                numbers = field.name in _NUMBERS
                if value is not None and not isinstance(value, (int, float) if numbers else str):
                    return None
                if value is None and default is not None:
                    return None
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        if found.state in (State.training, State.evaluating) and not found.alive():
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


def table(root: Path, console: Console) -> RenderableType | None:
    """All runs below a folder, the latest word first, and why some stopped; None if there are none.

    What matters less is left out where the console is narrow.
    """
    found = {path.parent: Status.read(path.parent) for path in root.rglob(STATUS_FILE)}
    known = {folder: status for folder, status in found.items() if status is not None}
    if not known:
        return None
    rows, reasons = [], []
    for folder, status in sorted(known.items(), key=lambda item: -item[1].updated):
        running = status.state in (State.training, State.evaluating)
        name = str(folder.relative_to(root))
        rows.append([
            name,
            status.state.value + (f" (job {status.job})" if status.job and running else ""),
            f"{status.step:,}/{status.max_steps:,}",
            status.bits_per_dim or "",
            status.bound or "",
            f"{status.images_per_second:,.0f}" if status.images_per_second and running else "",
            f"{status.stall:.1%}" if status.stall is not None and running else "",
            f"{status.memory / 2**30:.1f} GiB" if status.memory else "",
            duration(status.seconds_left) if status.seconds_left is not None and running else "",
            f"{duration(max(0.0, time.time() - status.updated))} ago",
        ])  # fmt: skip
        if status.reason:
            reasons.append(Text(f"{name}: {status.reason}", style="dim"))
    columns = (
        "run", "state", "step", "bits/dim", "bound", "images/s", "stall", "memory", "left", "last word"
    )  # fmt: skip
    return Group(fitting(console, columns, rows, ("memory", "stall", "bound", "images/s", "left")), *reasons)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
