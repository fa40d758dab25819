"""dualscore experiments."""

import argparse

from dualscore.commands.options import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    commands.add_parser("experiments", help="list the experiments").set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:  # noqa: ARG001 - it takes none
    from dualscore.experiment import available, summary

    names = available()
    width = max(map(len, names), default=0)
    print("\n".join(f"{name:{width}}  {summary(name)}" for name in names))
