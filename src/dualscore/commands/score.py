"""dualscore score."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, add_streaming, default_device
from dualscore.terminal import shared_console
from dualscore.terminal.dry import Plan


def add(commands: Commands) -> None:
    """Add the command."""
    score = commands.add_parser("score", help="how probable images are, and where they are not")
    score.add_argument("model", type=Path, help="a checkpoint, or a run's folder for its best one")
    score.add_argument("images", type=Path, nargs="+", help="image files, and folders of them")
    score.add_argument("--out", type=Path, default=Path("scores"), help="folder for the results")
    score.add_argument("--psnr", type=float, metavar="DB", help="effective dimension at this noise level")
    score.add_argument("--no-maps", dest="maps", action="store_false", help="no heat map of each image")
    add_streaming(score)
    score.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.scoring.score_images import ScoreOptions as Options
    from dualscore.scoring.score_images import score

    options = Options(
        out=arguments.out,
        psnr=arguments.psnr,
        resize=arguments.resize,
        normalize=arguments.normalize,
        maps=arguments.maps,
        batch_size=arguments.batch_size,
        workers=max(0, arguments.workers),
        device=arguments.device or default_device(),
    )
    score(arguments.model, arguments.images, options, shared_console())


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands import planning
    from dualscore.scoring.scorer import check_level

    plan = Plan("score")
    model = planning.open_model(plan, arguments.model)
    count = planning.count_images(plan, "images", arguments.images, arguments.out)
    if model is not None and count:
        planning.image_size(plan, model, arguments.images, arguments, arguments.out)
        if arguments.psnr is not None:
            plan.check("d_eff", lambda: check_level(arguments.psnr, model.t_max))
    planning.device(plan, arguments.device)
    batches = -(-count // arguments.batch_size)
    counted = f"{batches:,} {'batch' if batches == 1 else 'batches'} of at most {arguments.batch_size}"
    plan.add("work", f"one energy and its gradient for each image, {counted}")
    maps = ["maps/"] if arguments.maps else []
    return plan.writes(arguments.out, "scores.csv", "scores.json", "failures.csv", "sheet.png", *maps)
