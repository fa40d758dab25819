"""dualscore sample."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dualscore.commands.options import Commands, positive, wide_console

if TYPE_CHECKING:
    from dualscore.drawing import Options


def add(commands: Commands) -> None:
    """Add the command."""
    sample = commands.add_parser("sample", help="draw images from a model")
    add_drawing(sample, count=16, steps=200, methods=("metropolis", "langevin", "flow"))
    sample.set_defaults(run=_run)


def add_drawing(
    command: argparse.ArgumentParser,
    *,
    count: int,
    steps: int,
    methods: tuple[str, ...],
    images: bool = False,
) -> None:
    """The options that the commands which draw samples share."""
    command.add_argument("model", type=Path, help="a checkpoint, or a run's folder for its best one")
    if images:
        command.add_argument("images", type=Path, nargs="+", help="image files")
        command.add_argument("--resize", action="store_true", help="crop and resize images of other sizes")
    of = " of each image" if images else ""
    command.add_argument("--count", type=positive, default=count, help=f"samples{of} (default: {count})")
    command.add_argument("--method", choices=methods, default=methods[0], help=f"default: {methods[0]}")
    command.add_argument("--steps", type=positive, default=steps, help=f"noise levels (default: {steps})")
    command.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    command.add_argument("--out", type=Path, default=Path("samples"), help="folder for the results")
    command.add_argument("--batch-size", type=positive, default=64, help="images at once (default: 64)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def drawing_options(arguments: argparse.Namespace) -> "Options":
    """The options of `add_drawing`, as given."""
    import torch

    from dualscore.drawing import Options
    from dualscore.sampling import Method

    return Options(
        out=arguments.out,
        count=arguments.count,
        method=Method(arguments.method),
        steps=arguments.steps,
        seed=arguments.seed,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        batch_size=arguments.batch_size,
        resize=getattr(arguments, "resize", False),
    )


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.drawing import draw_samples

    draw_samples(arguments.model, drawing_options(arguments), wide_console())
