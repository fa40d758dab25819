"""Options that several commands share."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from dualscore.drawing.draw_images import DrawOptions as Options

    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
else:
    Commands = Any


def add_experiment(command: argparse.ArgumentParser) -> None:
    """The experiment, settings that win over its file's, and the run's name."""
    command.add_argument("experiment", help="name of a file in experiments/, without .yaml")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the file's"
    )
    command.add_argument("--name", help="name of the run's folder (default: the experiment's)")
    add_runs(command)


def add_runs(command: argparse.ArgumentParser) -> None:
    """Where runs are."""
    command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")


def add_streaming(command: argparse.ArgumentParser) -> None:
    """How a stream of image files is read and measured."""
    add_decoding(command)
    command.epilog = (
        "Errors are over photographs. In a folder that holds sub-folders of images and no image itself, the "
        "images of a sub-folder are taken for those of one photograph; any other image is its own."
    )
    command.add_argument("--normalize", action="store_true", help="estimate log Z where it is not known")


def add_decoding(command: argparse.ArgumentParser) -> None:
    """How image files are read, and where the network runs."""
    command.add_argument("--resize", action="store_true", help="crop and resize images of other sizes")
    command.add_argument("--batch-size", type=positive, default=128, help="images at once (default: 128)")
    workers = min(8, max(1, (os.cpu_count() or 1) // 2))
    shown = f"processes that decode (default: {workers}, half the cores, at most 8)"
    command.add_argument("--workers", type=int, default=workers, help=shown)
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def default_device() -> str:
    """A GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def positive(text: str) -> int:
    """A count from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def add_drawing(
    command: argparse.ArgumentParser,
    *,
    count: int,
    steps: int,
    methods: tuple[str, ...],
    out: str,
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
    command.add_argument(
        "--steps", type=positive, default=steps, help=f"noise levels, not of the flow (default: {steps})"
    )
    command.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    shown = f"folder for the results (default: {out})"
    command.add_argument("--out", type=Path, default=Path(out), help=shown)
    command.add_argument("--batch-size", type=positive, default=64, help="images at once (default: 64)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def drawing_options(arguments: argparse.Namespace) -> "Options":
    """The options of `add_drawing`, as given."""
    from dualscore.drawing.draw_images import DrawOptions as Options
    from dualscore.sampling import Method

    return Options(
        out=arguments.out,
        count=arguments.count,
        method=Method(arguments.method),
        steps=arguments.steps,
        seed=arguments.seed,
        device=arguments.device or default_device(),
        batch_size=arguments.batch_size,
        resize=getattr(arguments, "resize", False),
    )
