"""dualscore convert."""

import argparse
from pathlib import Path

from dualscore.commands.export import add_output, report
from dualscore.commands.options import Commands, add_decoding, default_device
from dualscore.terminal import shared_console
from dualscore.terminal.dry import Plan


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
    convert.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.publishing.conversion import Options, convert

    options = Options(
        out=arguments.out,
        resize=arguments.resize,
        batch_size=arguments.batch_size,
        workers=max(0, arguments.workers),
        device=arguments.device or default_device(),
        licence=arguments.licence,
    )
    wanted = not arguments.no_normalizer
    report(convert(arguments.released, arguments.images, wanted, options, shared_console()))


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands import planning
    from dualscore.model_files.exported import check_folder
    from dualscore.publishing.conversion import check_released

    plan = Plan("convert")
    plan.check("file", lambda: check_released(arguments.released))
    model = None if plan.problems else planning.open_model(plan, arguments.released)
    if arguments.images:
        count = planning.count_images(plan, "images", arguments.images, arguments.out)
        if model is not None and count:
            arguments.normalize = True
            planning.image_size(plan, model, arguments.images, arguments, arguments.out)
        plan.add("work", f"log Z from {count:,} images: two network evaluations for each")
    planning.device(plan, arguments.device)
    plan.check("folder", lambda: check_folder(arguments.out))
    return plan.writes(arguments.out, "model.safetensors", "README.md")
