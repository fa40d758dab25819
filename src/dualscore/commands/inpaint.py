"""dualscore inpaint."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, add_drawing, drawing_options, wide_console


def add(commands: Commands) -> None:
    """Add the command."""
    inpaint = commands.add_parser("inpaint", help="hide pixels of images; draw them given the others")
    shown = "image that is white where pixels are missing (default: the middle, half as wide and high)"
    inpaint.add_argument("--mask", type=Path, help=shown)
    add_drawing(inpaint, count=4, steps=200, methods=("metropolis", "langevin"), out="inpainted", images=True)
    inpaint.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.drawing.run import draw_inpainted

    options = drawing_options(arguments)
    draw_inpainted(arguments.model, arguments.images, arguments.mask, options, wide_console())
