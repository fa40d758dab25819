"""dualscore data."""

import argparse

from dualscore.commands.options import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    shown = "prepare images for training, and check them: build, verify"
    data = commands.add_parser(
        "data", help=shown, add_help=False
    )  # data_prep has options and help of its own
    data.add_argument("handed_over", nargs=argparse.REMAINDER)
    data.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from data_prep.cli import main

    return main(arguments.handed_over, "dualscore data")
