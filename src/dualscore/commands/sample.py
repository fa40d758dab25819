"""dualscore sample."""

import argparse

from dualscore.commands.options import Commands, add_drawing, drawing_options
from dualscore.terminal import shared_console
from dualscore.terminal.dry import Plan


def add(commands: Commands) -> None:
    """Add the command."""
    sample = commands.add_parser("sample", help="draw images from a model")
    add_drawing(sample, count=16, steps=200, methods=("metropolis", "langevin", "flow"), out="samples")
    sample.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.drawing.draw_images import draw_samples

    draw_samples(arguments.model, drawing_options(arguments), shared_console())


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands.planning import drawing

    return drawing("sample", arguments)
