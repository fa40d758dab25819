"""What `srun` starts: `dualscore`, except that a stop on request is no failure of the task.

Where one task fails Slurm shall end the others (--kill-on-bad-exit), or they wait for it for ever. Tasks that
stop on request do so a moment apart, so with a status of their own the first would have the others killed
while they still save. Hence they leave with status 0 and a file, which the batch script looks for.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from dualscore.errors import StoppedError

_STOP_FILE = "DUALSCORE_STOP_FILE"
_ASKED = StoppedError.status


def _stop_early(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    """Before training listens there is nothing to save; the status has tasks that wait ended."""
    Path(os.environ[_STOP_FILE]).touch()
    os._exit(_ASKED)


def main() -> int:
    """Run the command line; its exit status, or 0 and a file where it was asked to stop."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop_early)
    from dualscore.cli import main as run

    status = run()
    if status == _ASKED:
        Path(os.environ[_STOP_FILE]).touch()
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
