"""The command line: train, evaluate, score, submit. Errors meant for people become one line."""

import argparse
import os
import sys

from dualscore import commands
from dualscore.errors import DualscoreError, StoppedError
from dualscore.redaction import redact


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dualscore", description="Normalized energy models of images.")
    added = parser.add_subparsers(dest="command", required=True)
    for add in commands.ALL:
        add(added)
    return parser


def _one_line(error: DualscoreError) -> str:
    """The message without credentials; of a traceback in text, as loader processes send it, the last line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return redact(" ".join(text.split()))


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments, without the program's name; default: the process's own.

    Returns:
        The exit status: 0; after an error that is shown as one line 1, 3 where a training diverged,
        4 where an energy could not be normalized; 75 where a run was asked to stop and can go on.
    """
    # Torch's CPU threads wait for each other by spinning. Where anything else runs, spinning long makes a
    # step tens of times slower (measured: 0.1 instead of 2.6 steps/s beside one busy process); spinning this
    # long and then sleeping costs a fifth where nothing else does. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    settable = hasattr(arguments, "overrides")
    if strangers := [word for word in rest if word.startswith("-") or "=" not in word or not settable]:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:  # settings after an option, which argparse leaves over
        arguments.overrides += rest
    try:
        arguments.run(arguments)
    except StoppedError as stop:
        from dualscore.terminal import rank

        # Launchers take the failure of any other process for one of the whole group, and kill the first.
        if rank() > 0:
            return 0
        print(_one_line(stop), file=sys.stderr)
        return stop.status
    except DualscoreError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {redact(f'{where}{error.strerror or error}')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = {
            "train": " from the last checkpoint",
            "study": " where it stopped",
            "evaluate": " where it stopped",
            "figures": " where it stopped",
        }.get(arguments.command)
        print("interrupted" + (f"; the same command goes on{kept}" if kept else ""), file=sys.stderr)
        return 130
    return 0
