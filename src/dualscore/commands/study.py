"""dualscore study."""

import argparse

from dualscore.commands.options import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    study = commands.add_parser("study", help="compare variants of an experiment, or go on where it stopped")
    study.add_argument("study", help="name of a file in studies/, without .yaml")
    study.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.study import load_study, run_study
    from dualscore.terminal import shared_console

    run_study(load_study(arguments.study), shared_console())
