"""The command line: train, evaluate, score, submit. Errors meant for people become one line."""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from dualscore.cores import limit_threads
from dualscore.errors import DualscoreError, StoppedError
from dualscore.redaction import complaint, shown
from dualscore.runs.launch import forget_launchers, in_a_group
from dualscore.terminal.whole_command import run_whole

if TYPE_CHECKING:
    import dualscore.commands as commands
    from dualscore.terminal.console import Terminal

GOES_ON = dict.fromkeys(("study", "evaluate", "figures"), "; the same command goes on where it stopped")
"""What is said of a command after Ctrl-C, where it does not say so itself."""


class _Version(argparse.Action):
    """Prints versions; looked up on demand, because that takes a while."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        from dualscore import __version__

        beside = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
        print(f"dualscore {__version__} ({beside}, Python {platform.python_version()})")
        parser.exit()


def _parser() -> "tuple[commands.Parser, dict[str, commands.Parser]]":
    import dualscore.commands as commands

    parser = commands.Parser(prog="dualscore", description="Energy models of images, by dual score matching.")
    parser.add_argument("--version", action=_Version, help="of dualscore and what it computes with")
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_all(cast(Any, added))
    for each in (parser, *added.choices.values()):
        if each.add_help:  # one without hands everything over to a parser of its own
            commands.add_general(each)
    return parser, dict(added.choices)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, of the process's own arguments by default; returns the exit status.

    After an error that is shown as one line that is 1, 3 where a training diverged, 4 where an energy could
    not be normalized; 75 where a run was asked to stop and can go on.
    """
    # Torch's CPU threads wait for each other by spinning. Where anything else runs, spinning long makes a
    # step tens of times slower (measured: 0.1 instead of 2.6 steps/s beside one busy process); spinning this
    # long and then sleeping costs a fifth where nothing else does. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    limit_threads()
    return run_whole(lambda: _main(list(sys.argv[1:] if argv is None else argv)), last=argv is None)


def _main(words: list[str]) -> int:
    # Here, so that Ctrl-C while it is imported is one line, too.
    import dualscore.commands as commands
    from dualscore.terminal.console import speaking

    parser, known = _parser()
    commands.complete(parser)
    arguments, rest = parser.parse_known_args(words)
    if arguments.command == "data":
        words.remove("data")
        return commands.data(words)
    settable = hasattr(arguments, "overrides")
    if strangers := [word for word in rest if word.startswith("-") or "=" not in word or not settable]:
        known[arguments.command].unknown(strangers)
    if rest:  # settings after an option, which argparse leaves over
        arguments.overrides += rest
    if arguments.command != "train" and not (arguments.command == "evaluate" and in_a_group()):
        forget_launchers()
    hushed, log_file = getattr(arguments, "quiet", False), getattr(arguments, "log_file", None)
    with speaking(hushed, log_file, shown(shlex.join(["dualscore", *words]))) as console:
        return _run(arguments, console)


def _run(arguments: argparse.Namespace, console: "Terminal") -> int:
    import dualscore.commands as commands
    from dualscore.terminal.console import rank, typable

    try:
        if (plan := commands.call(arguments)) is not None:
            plan.show(console)
        return 0
    except StoppedError as stop:
        # Launchers take the failure of any other process for one of the whole group, and kill the first.
        if rank() > 0:
            return 0
        print(complaint(stop), file=sys.stderr)
        return stop.status
    except (DualscoreError, OSError) as error:
        print(f"error: {typable(complaint(error))}", file=sys.stderr)
        return getattr(error, "status", 1)
    except KeyboardInterrupt as error:
        more = f"; {error}" if error.args else GOES_ON.get(arguments.command, "")
        print(f"interrupted{more}", file=sys.stderr)
        return 130
