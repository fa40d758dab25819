"""dualscore convert."""

import argparse
from pathlib import Path

from dualscore.commands.export import add_output, report
from dualscore.commands.options import Commands, add_decoding, default_device, wide_console


def add(commands: Commands) -> None:
    """Add the command."""
    convert = commands.add_parser("convert", help="write a released checkpoint as a model, with its log Z")
    convert.add_argument("released", type=Path, help="a checkpoint in the paper's format (.pth.tar)")
    images = convert.add_mutually_exclusive_group()
    shown = "files and folders that log Z is estimated on: a few hundred images of one size"
    images.add_argument("--images", type=Path, nargs="+", default=[], help=shown)
    images.add_argument("--no-normalizer", action="store_true", help="leave log Z unknown: energies only")
    add_output(convert, "converted")
    add_decoding(convert)
    convert.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.conversion import Options, convert

    options = Options(
        out=arguments.out,
        resize=arguments.resize,
        batch_size=arguments.batch_size,
        workers=max(0, arguments.workers),
        device=arguments.device or default_device(),
        licence=arguments.licence,
    )
    wanted = not arguments.no_normalizer
    report(convert(arguments.released, arguments.images, wanted, options, wide_console()))
