"""What a command line does around its command: whatever ends it, people read one line. Starts at once."""

import os
import signal
import sys
from collections.abc import Callable

from dualscore.errors import DualscoreError
from dualscore.redaction import complaint
from dualscore.terminal.any_terminal import fit_any_terminal


def run_whole(command: Callable[[], int], *, last: bool) -> int:
    """Run a command; its exit status, an error's own after one line of it, or 130 after Ctrl-C.

    `last` says that the process ends with it: what Python then tidies up is not worth a traceback.
    """
    os.environ.pop("MPLBACKEND", None)  # no window is opened, and matplotlib ends over one that it lost
    fit_any_terminal()
    try:
        _look_where_we_are()
        return command()
    except (DualscoreError, OSError) as error:  # the log file itself, or what is printed
        print(f"error: {complaint(error)}", file=sys.stderr)
        return getattr(error, "status", 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if last:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _look_where_we_are() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise DualscoreError("the current folder was removed: go to one that is there (cd)") from error
