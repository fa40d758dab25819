"""Ends a run that makes no progress, and names the device that holds it up."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from dualscore.files.aside import write_aside

SECOND = 1.0
NEAR, REMOTE = 3.0, 70.0
"""Seconds without a word after which a rank is silent; network file systems show other hosts' files late."""
GRACE = 10.0
"""Seconds that the process itself has to notice that another one ended."""


class Phase(IntEnum):
    """Parts of a step, in their order."""

    waiting = 0
    """for images"""
    computing = 1
    """the loss"""
    exchanging = 2
    """gradients, computed while they are exchanged"""
    done = 3
    """with the step: saving, logging, measuring"""


@dataclass
class Place:
    """Where a rank is."""

    rank: int
    process: int
    host: str
    step: int = 0
    phase: Phase = Phase.waiting

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


def within(seconds: float, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the work returns
    """What some work that may hang returns; None if it takes longer than this."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


class Watchdog:
    """Threads that write this rank's place into a folder, and `end` the process when it stays there too long.

    The folder holds the places of all ranks; `limit` is in seconds; `end` is told why.
    """

    def __init__(
        self, folder: Path, rank: int, world_size: int, limit: float, end: Callable[[str], None]
    ) -> None:
        self.folder, self.world_size, self.limit, self.end = folder, world_size, limit, end
        self.place = Place(rank, os.getpid(), socket.gethostname())
        self._since = time.monotonic()
        self._children: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()
        # Two, so that a file system that hangs keeps nobody from looking at the time.
        self._threads = [
            threading.Thread(target=work, name=f"watchdog: {work.__name__}", daemon=True)
            for work in (self._keep_writing, self._watch)
        ]

    def __enter__(self) -> "Watchdog":
        self.folder.mkdir(parents=True, exist_ok=True)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(SECOND)

    def get_on(self, step: int, phase: Phase) -> None:
        """Note that this rank has made progress."""
        self.place.step, self.place.phase = step, phase
        self._since = time.monotonic()

    def adopt_children(self) -> None:
        """Take over the processes that Lightning started for other devices from its own observer.

        That one kills this process without a message when one of them ends, even if it was asked to.
        """
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                self._children = thread._child_processes  # type: ignore[attr-defined]
                thread._child_processes = []  # type: ignore[attr-defined]

    def silent(self) -> list[Place]:
        """The other ranks that have stopped writing while somebody still does: dead, stopped, or cut off."""
        hosts = {self._read(rank).host for rank in range(self.world_size)}
        margin = NEAR if len(hosts) == 1 else REMOTE
        time.sleep(margin + SECOND)
        # Compared with each other, as the file system dates them: clocks of computers differ, and jump.
        files = {rank: self._file(rank) for rank in range(self.world_size)}
        written = {rank: path.stat().st_mtime for rank, path in files.items() if path.exists()}
        newest = max(written.values(), default=0.0)
        places = [self._read(rank) for rank in files if newest - written.get(rank, 0.0) > margin]
        return [place for place in places if place.rank != self.place.rank]

    def in_the_way(self) -> str:
        """Which ranks hold the run up, in words."""
        if silent := self.silent():
            return f"{', '.join(map(str, silent))}: silent since step {silent[0].step}"
        places = [self._read(rank) for rank in range(self.world_size)]
        first = min((place.step, place.phase) for place in places)
        behind = [place for place in places if (place.step, place.phase) == first]
        where = f"in step {first[0]}, {Phase(first[1]).name}"
        if len(behind) == len(places) > 1:
            return f"all ranks are {where}"
        return f"{', '.join(map(str, behind))}: stuck {where}"

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _read(self, rank: int) -> Place:
        try:
            fields = json.loads(self._file(rank).read_text())
            return Place(**(fields | {"phase": Phase(fields["phase"])}))
        except (OSError, ValueError, TypeError, KeyError):
            return Place(rank, 0, "a host that never began")

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end a run
            write_aside(self._file(self.place.rank), json.dumps(asdict(self.place)).encode(), flush=False)

    def _keep_writing(self) -> None:
        while True:
            self._write()
            if self._stop.wait(SECOND):
                return

    def _watch(self) -> None:
        reason = None
        while reason is None and not self._stop.wait(SECOND):
            reason = self._reason()
        if reason is not None:
            for child in self._children:
                child.kill()
            self.end(reason)

    def _reason(self) -> str | None:
        """Why the process must end, if it must."""
        for number, child in enumerate(self._children, start=1):
            if child.poll() and not self._stop.wait(GRACE):
                return f"{self._read(number)} ended with status {child.returncode}"
        if time.monotonic() - self._since > self.limit:
            who = within(2 * REMOTE, self.in_the_way) or "who is in the way cannot be read"
            return f"no progress for {self.limit:.0f} s: {who}"
        return None
