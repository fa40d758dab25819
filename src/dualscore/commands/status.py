"""dualscore status."""

import argparse

from dualscore.commands.options import Commands, add_runs, wide_console


def add(commands: Commands) -> None:
    """Add the command."""
    status = commands.add_parser("status", help="list runs: step, bits/dim, speed, time left, state")
    add_runs(status)
    status.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.status import table

    shown = table(arguments.runs)
    wide_console().print(shown or f"no runs in {arguments.runs}; make train starts one", soft_wrap=not shown)
