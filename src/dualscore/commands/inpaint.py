"""dualscore inpaint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dualscore.commands.options import Commands, add_drawing, drawing_options
from dualscore.terminal import shared_console
from dualscore.terminal.dry import Plan

if TYPE_CHECKING:
    from dualscore.model import ImageModel


def add(commands: Commands) -> None:
    """Add the command."""
    inpaint = commands.add_parser("inpaint", help="hide pixels of images; draw them given the others")
    shown = "image that is white where pixels are missing (default: the middle, half as wide and high)"
    inpaint.add_argument("--mask", type=Path, help=shown)
    add_drawing(inpaint, count=4, steps=200, methods=("metropolis", "langevin"), out="inpainted", images=True)
    inpaint.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.drawing.draw_images import draw_inpainted

    options = drawing_options(arguments)
    draw_inpainted(arguments.model, arguments.images, arguments.mask, options, shared_console())


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands.planning import drawing
    from dualscore.drawing.draw_images import known_pixels

    def look(model: "ImageModel") -> str:
        assert model.image_shape is not None
        hidden = ~known_pixels(arguments.mask, *model.image_shape[1:])
        return f"{arguments.mask or 'the middle'}: {int(hidden.sum())} of {hidden.numel()} pixels are hidden"

    return drawing("inpaint", arguments, ("mask", look))
