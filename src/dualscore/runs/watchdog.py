"""What ends a run: signals that ask it to stop, and a watchdog where it makes no progress."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

from dualscore.errors import StoppedError
from dualscore.files.aside import write_aside
from dualscore.files.typed_json import parse_json

ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
"""By these a cluster, `kill`, a terminal that closes or Ctrl-C asks a run to stop where it can go on."""
INTERRUPTED = 130
"""A process's exit status after Ctrl-C."""
SECOND = 1.0
NEAR, REMOTE = 3.0, 70.0
"""Seconds without a word after which a rank is silent; network file systems show other hosts' files late."""
GRACE = 10.0
"""Seconds that the process itself has to notice that another one ended."""
AT_ONCE = 3.0
"""Seconds that a main thread has for a stop at which nothing is saved; it may wait in a library for ever."""


class StopSignals:
    """Notes a signal, for training to look at between steps; as a context, puts the old handlers back.

    Before training listens there is nothing to save: the process ends, and `tell` is given the signal's name.
    A second Ctrl-C is a KeyboardInterrupt. Signals that are ignored, as by nohup, stay ignored.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self.received: str | None = None
        """Name of the first signal, if one came."""
        self.tell = tell
        self._at_once = self._listening = False
        self._interrupted: float | None = None
        self._gone = threading.Event()

    def __enter__(self) -> "StopSignals":
        self._before = {
            number: handler
            for number in ASKED
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
        }
        self._terminals = [file for file in (1, 2) if os.isatty(file)]
        # Python's own handlers wait until the main thread returns from a library; a byte in a pipe does not.
        self._bytes, self._noted = os.pipe()
        os.set_blocking(self._noted, False)
        self._former = signal.set_wakeup_fd(self._noted, warn_on_full_buffer=False)
        threading.Thread(target=self._look, name="signals", daemon=True).start()
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._gone.set()
        signal.set_wakeup_fd(self._former)
        os.close(self._noted)  # which ends the thread

    def listen(self) -> None:
        """From now on training looks at `received`, also where another library listened in the meantime."""
        self._listening = True
        self._install()

    def stop_at_once(self) -> None:
        """From now on a signal raises StoppedError, where everything that is done is kept as it is done.

        So does one that has come already.
        """
        self._at_once = self._listening = True
        if self.received:
            raise self._stopped()

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        name, now = signal.Signals(number).name, time.monotonic()
        if number == signal.SIGHUP:  # nobody reads any more, and writing would be an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in self._terminals:
                os.dup2(nowhere, file)
            os.close(nowhere)
        if number == signal.SIGINT:
            # A study hands on what the terminal has told its run already.
            if self._interrupted is not None and now - self._interrupted > SECOND:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        first, self.received = self.received is None, self.received or name
        if self._at_once:
            raise self._stopped()
        if first and number == signal.SIGINT and self._listening:
            os.write(2, b"saving after this step; Ctrl-C again ends at once\n")

    def _stopped(self) -> StoppedError:
        return StoppedError(f"stopped by {self.received}; the same command goes on")

    def _look(self) -> None:
        """End the process where its main thread does not, when nothing is to be saved."""
        interrupted: float | None = None
        while received := os.read(self._bytes, 1):
            number, now = signal.Signals(received[0]), time.monotonic()
            again = False
            if number == signal.SIGINT:
                again = interrupted is not None and now - interrupted > SECOND
                interrupted = interrupted or now
            if number not in self._before or (self._listening and not again):
                continue
            if not self._gone.wait(AT_ONCE) and (again or not self._listening):
                self._leave(number)
        os.close(self._bytes)

    def _leave(self, number: signal.Signals) -> None:
        self.tell(number.name)
        for child in started_by_lightning():
            child.terminate()
        before = self._before[number]
        if callable(before) and number != signal.SIGINT:  # a task of srun leaves in its own way
            before(number, None)
        os._exit(INTERRUPTED if number == signal.SIGINT else StoppedError.status)


def started_by_lightning() -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning started for other devices and observes; the list itself."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            return thread._child_processes  # type: ignore[attr-defined,no-any-return]
    return []


class Phase(IntEnum):
    """Parts of a step, in their order."""

    waiting = 0  # for images
    computing = 1  # the loss
    exchanging = 2  # gradients, computed while they are exchanged
    done = 3  # with the step: saving, logging, measuring


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
        self._idle = 0.0  # seconds without progress, of those in which this process itself was not stopped
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
        self._idle = 0.0

    def adopt_children(self) -> None:
        """Take over the processes that Lightning started for other devices from its own observer.

        That one kills this process without a message when one of them ends, even if it was asked to.
        """
        observed = started_by_lightning()
        self._children = observed[:]
        observed.clear()

    def silent(self) -> list[Place]:
        """The other ranks that have stopped writing while somebody still does: dead, stopped, or cut off."""
        margin = NEAR if len({place.host for place in self._places()}) == 1 else REMOTE
        time.sleep(margin + SECOND)
        # Compared with each other, as the file system dates them: clocks of computers differ, and jump.
        files = map(self._file, range(self.world_size))
        written = [path.stat().st_mtime if path.exists() else 0.0 for path in files]
        late = {rank for rank, when in enumerate(written) if max(written) - when > margin}
        return [place for place in self._places() if place.rank in late - {self.place.rank}]

    def in_the_way(self) -> str:
        """Which ranks hold the run up, in words."""
        if silent := self.silent():
            return f"{', '.join(map(str, silent))}: silent since step {silent[0].step}"
        places = self._places()
        step, phase = min((place.step, place.phase) for place in places)
        behind = [place for place in places if (place.step, place.phase) == (step, phase)]
        where = f"in step {step}, {Phase(phase).name}"
        if len(behind) == len(places) > 1:
            return f"all ranks are {where}"
        return f"{', '.join(map(str, behind))}: stuck {where}"

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _places(self) -> list[Place]:
        """All ranks' places, as they wrote them."""
        found = []
        for rank in range(self.world_size):
            try:
                fields = parse_json(self._file(rank).read_text())
                found.append(Place(**(fields | {"phase": Phase(fields["phase"])})))
            except (OSError, ValueError, TypeError, KeyError):
                found.append(Place(rank, 0, "a host that never began"))
        return found

    def _keep_writing(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk must not end a run
                content = json.dumps(asdict(self.place)).encode()
                write_aside(self._file(self.place.rank), content, flush=False)
            if self._stop.wait(SECOND):
                return

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(SECOND):
            before, looked = looked, time.monotonic()
            if looked - before < SECOND + NEAR:
                self._idle += looked - before
            else:  # it was itself stopped, with everything else: suspended by Slurm, asleep with a laptop
                self._idle = 0.0
            if (reason := self._reason()) is not None:
                for child in self._children:
                    child.kill()
                self.end(reason)
                return

    def _reason(self) -> str | None:
        """Why the process must end, if it must."""
        for number, child in enumerate(self._children, start=1):
            if child.poll() and not self._stop.wait(GRACE):
                return f"{self._places()[number]} ended with status {child.returncode}"
        if self._idle > self.limit:
            who = within(2 * REMOTE, self.in_the_way) or "who is in the way cannot be read"
            return f"no progress for {self.limit:.0f} s: {who}"
        return None
