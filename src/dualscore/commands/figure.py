"""dualscore figure."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, add_runs


def add(commands: Commands) -> None:
    """Add the command."""
    figure = commands.add_parser("figure", help="draw a figure of the paper from runs")
    figure.add_argument("number", help="its number in the paper")
    figure.add_argument("--out", type=Path, default=Path("figures"), help="folder for PDF, PNG and numbers")
    add_runs(figure)
    figure.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.figures import draw

    for file in draw(arguments.number, arguments.runs, arguments.out):
        print(f"written to {file}")
