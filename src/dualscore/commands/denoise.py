"""dualscore denoise."""

import argparse
from typing import TYPE_CHECKING

from dualscore.commands.options import Commands, add_drawing, drawing_options
from dualscore.terminal import shared_console
from dualscore.terminal.dry import Plan

if TYPE_CHECKING:
    from dualscore.model import ImageModel


def add(commands: Commands) -> None:
    """Add the command."""
    denoise = commands.add_parser("denoise", help="add noise to images; draw what they may have been")
    denoise.add_argument(
        "--psnr", type=float, default=20.0, metavar="DB", help="noise level (default: 20 dB)"
    )
    add_drawing(denoise, count=4, steps=100, methods=("metropolis", "langevin"), out="denoised", images=True)
    denoise.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.drawing.draw_images import draw_denoised

    options = drawing_options(arguments)
    draw_denoised(arguments.model, arguments.images, arguments.psnr, options, shared_console())


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands.planning import drawing
    from dualscore.drawing.draw_images import noise_variance

    def look(model: "ImageModel") -> str:
        return f"{arguments.psnr:g} dB, variance {noise_variance(model, arguments.psnr):.3g} pixel²"

    return drawing("denoise", arguments, ("noise", look))
