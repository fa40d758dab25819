"""Options that several commands share."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
else:
    Commands = Any


def add_experiment(command: argparse.ArgumentParser) -> None:
    """The experiment, settings that win over its file's, and the run's name."""
    command.add_argument("experiment", help="name of a file in experiments/, without .yaml")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the file's"
    )
    command.add_argument("--name", help="name of the run's folder (default: the experiment's)")
    add_runs(command)


def add_runs(command: argparse.ArgumentParser) -> None:
    """Where runs are."""
    command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")


def positive(text: str) -> int:
    """A count from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def wide_console() -> "Console":
    """The terminal; written into a file or a pipe, no line is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)
