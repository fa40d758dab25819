"""dualscore status."""

import argparse

from dualscore.commands.options import Commands, add_runs
from dualscore.terminal import final, shared_console
from dualscore.terminal.hints import command


def add(commands: Commands) -> None:
    """Add the command."""
    status = commands.add_parser("status", help="list runs: step, bits/dim, speed, time left, state")
    add_runs(status)
    status.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.runs.run_status import table

    console = shared_console()
    shown = table(arguments.runs, console)
    train = command("train", "EXPERIMENT", variables={"EXP": "…"})
    final(console, shown or f"no runs in {arguments.runs}; {train} starts one", soft_wrap=not shown)
