"""dualscore score."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, add_decoding, wide_console


def add(commands: Commands) -> None:
    """Add the command."""
    score = commands.add_parser("score", help="how probable images are, and where they are not")
    score.add_argument("model", type=Path, help="a checkpoint, or a run's folder for its best one")
    score.add_argument("images", type=Path, nargs="+", help="image files, and folders of them")
    score.add_argument("--out", type=Path, default=Path("scores"), help="folder for the results")
    score.add_argument("--psnr", type=float, metavar="DB", help="effective dimension at this noise level")
    score.add_argument("--normalize", action="store_true", help="estimate log Z where it is not known")
    score.add_argument("--no-maps", dest="maps", action="store_false", help="no heat map of each image")
    add_decoding(score)
    score.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from dualscore.scoring.results import Options
    from dualscore.scoring.run import score

    options = Options(
        out=arguments.out,
        psnr=arguments.psnr,
        resize=arguments.resize,
        normalize=arguments.normalize,
        maps=arguments.maps,
        batch_size=arguments.batch_size,
        workers=max(0, arguments.workers),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    score(arguments.model, arguments.images, options, wide_console())
