"""dualscore ood."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, add_streaming, default_device
from dualscore.terminal import shared_console
from dualscore.terminal.dry import Plan


def add(commands: Commands) -> None:
    """Add the command."""
    ood = commands.add_parser("ood", help="tell images of another kind from images of the model's")
    ood.add_argument("model", type=Path, help="a checkpoint, or a run's folder for its best one")
    ood.add_argument(
        "--in",
        dest="inside",
        type=Path,
        nargs="+",
        required=True,
        metavar="IMAGES",
        help="files and folders of images of the kind that the model was trained on, not among them",
    )
    ood.add_argument(
        "--out",
        dest="outside",
        type=Path,
        nargs="+",
        required=True,
        metavar="IMAGES",
        help="files and folders of other images",
    )
    ood.add_argument(
        "--results", type=Path, default=Path("ood"), help="folder for the results (default: ood)"
    )
    ood.add_argument(
        "--psnr",
        type=float,
        nargs="+",
        metavar="DB",
        help="noise levels of the effective dimensions (default: 50 40 30 20 10 0)",
    )
    add_streaming(ood)
    ood.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.detection.detect_images import LEVELS, detect
    from dualscore.detection.detect_images import DetectOptions as Options

    options = Options(
        results=arguments.results,
        levels=tuple(dict.fromkeys(arguments.psnr)) if arguments.psnr else LEVELS,
        resize=arguments.resize,
        normalize=arguments.normalize,
        batch_size=arguments.batch_size,
        workers=max(0, arguments.workers),
        device=arguments.device or default_device(),
    )
    detect(arguments.model, arguments.inside, arguments.outside, options, shared_console())


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands import planning
    from dualscore.detection.detect_images import LEVELS, check_sides, results_hint
    from dualscore.scoring.scorer import DRAWS, check_level

    plan, out = Plan("ood"), arguments.results
    levels = tuple(dict.fromkeys(arguments.psnr)) if arguments.psnr else LEVELS
    model = planning.open_model(plan, arguments.model)
    count = planning.count_images(plan, "in", arguments.inside, out)
    count += planning.count_images(plan, "out", arguments.outside, out, results_hint())
    if not plan.problems:
        plan.check("sides", lambda: check_sides(arguments.inside, arguments.outside, out))
    if model is not None and not plan.problems:
        planning.image_size(plan, model, arguments.inside, arguments, out)
        for level in levels:
            plan.check(f"{level:g} dB", check_level, level, model.t_max)
    planning.device(plan, arguments.device)
    each = 1 + len(levels) * DRAWS
    plan.add("work", f"{each} network evaluations for each of {count:,} images")
    return plan.writes(out, "ood.csv", "ood.json", "failures.csv", "ood.png", "ood.pdf")
