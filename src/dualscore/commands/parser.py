"""The parser: options that every command takes, and what was probably meant by a misspelt word."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dualscore.terminal.complaint import shown
from dualscore.terminal.hints import did_you_mean

_CHOICE = re.compile(r"(.*invalid choice: '(.*?)') \(choose from (.*)\)$", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two short lines, and say what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave with status 2."""
        if found := _CHOICE.fullmatch(message):
            said, word, choices = found.groups()
            names = re.findall(r"[\w.+-]+", choices)
            command = "COMMAND" in said or "argument command" in said
            message = f"there is no command {word!r}" if command else said
            message += f"; {did_you_mean(word, names)}there are: {', '.join(names)}"
        self.exit(2, f"error: {shown(message)}\nsee: {self.prog} --help\n")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse words that no option and no argument takes, and leave with status 2."""
        there = self._option_string_actions
        guesses = {w: did_you_mean(w.partition("=")[0], there) for w in words if w.startswith("-")}
        hints = "".join(f"; {guess}" for guess in guesses.values() if guess).rstrip()
        self.error(f"unrecognized arguments: {' '.join(words)}{hints}")


def general_words(arguments: argparse.Namespace) -> list[str]:
    """The options of every command, as they were typed."""
    words = [
        f"--{name.replace('_', '-')}" for name in ("quiet", "dry_run") if getattr(arguments, name, False)
    ]
    log_file = getattr(arguments, "log_file", None)
    return words if log_file is None else [*words, "--log-file", str(log_file)]


def add_general(parser: argparse.ArgumentParser, dry: bool = True) -> None:
    """Options that stand before the command or after it; where not given, nothing is set.

    Args:
        parser: of the command line, or of a command.
        dry: whether it can be tried.
    """
    group = parser.add_argument_group("of every command")
    group.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="show errors and final figures only"
    )
    group.add_argument(
        "--log-file",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="append all that is said to a file too, with times",
    )
    if dry:
        shown = "check the input, say what would be done, and write nothing"
        group.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS, help=shown)
