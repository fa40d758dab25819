"""Signals that ask a run to stop where it can go on: a cluster's time limit, pre-emption, `kill`."""

import signal
from types import FrameType

from dualscore.errors import StoppedError

ASKED = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes a signal, for training to look at between steps; as a context, puts the old handlers back."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal, if one came."""
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in ASKED}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def install(self) -> None:
        """Listen, also where another library listened in the meantime."""
        for number in ASKED:
            signal.signal(number, self._note)

    def stop_at_once(self) -> None:
        """From now on a signal raises, where everything that is done is kept as it is done.

        Raises:
            StoppedError: if one has come already.
        """
        self._at_once = True
        if self.received:
            raise StoppedError(f"stopped by {self.received}; the same command goes on")

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        self.received = self.received or signal.Signals(number).name
        if self._at_once:
            raise StoppedError(f"stopped by {self.received}; the same command goes on")
