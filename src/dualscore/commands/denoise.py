"""dualscore denoise."""

import argparse

from dualscore.commands.options import Commands, add_drawing, drawing_options, wide_console


def add(commands: Commands) -> None:
    """Add the command."""
    denoise = commands.add_parser("denoise", help="add noise to images; draw what they may have been")
    denoise.add_argument(
        "--psnr", type=float, default=20.0, metavar="DB", help="noise level (default: 20 dB)"
    )
    add_drawing(denoise, count=4, steps=100, methods=("metropolis", "langevin"), out="denoised", images=True)
    denoise.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.drawing.run import draw_denoised

    options = drawing_options(arguments)
    draw_denoised(arguments.model, arguments.images, arguments.psnr, options, wide_console())
