"""Command line: ``python -m data_prep build …`` and ``python -m data_prep verify …``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dualscore.errors import DataError, DualscoreError

DEFAULTS = {"size": 16, "val_fraction": 0.1, "seed": 0}
OPTIONS = {"src": "--src", "size": "--size", "val_fraction": "--val-fraction", "seed": "--seed"}
DATASETS = """\
data sets:
  demo            photographs shipped with scikit-image and scikit-learn; no --src
  demo_a, demo_b  disjoint halves of the demo's training photographs, with the same validation
  folder          any folder of photographs, cut into crops
  imagenet64      official down-sampled ImageNet: train_data_batch_1 … 10 and val_data
  imagenet32      the same at 32×32
  imagenet64_png  the older PNG release, train_64x64 and valid_64x64; never compare the two
  cifar10         cifar-10-python.tar.gz, or its folder cifar-10-batches-py

An interrupted build goes on when the same command is given again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 0 or 1 (130 after Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        return _build(options) if options.command == "build" else _verify(options)
    except DualscoreError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print("interrupted: give the same command again to go on", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 1


def _build(options: argparse.Namespace) -> int:
    from data_prep.build import build
    from data_prep.plan import Request
    from data_prep.sources import SOURCES

    source = SOURCES[options.dataset]
    given = {name: getattr(options, name) for name in OPTIONS}
    for name, flag in OPTIONS.items():
        if given[name] is not None and name not in source.uses:
            raise DataError(f"{options.dataset} does not use {flag}: leave it out")
        if given[name] is None and name in source.uses:
            if name == "src":
                raise DataError(
                    f"{options.dataset} needs a source, SRC=… (--src): the folder or archive it is made from"
                )
            given[name] = DEFAULTS[name]
    if given["val_fraction"] is not None and not 0 < given["val_fraction"] < 1:
        raise DataError(f"--val-fraction must lie between 0 and 1, not {given['val_fraction']}")
    request = Request(
        options.dataset, **given, images_per_shard=options.images_per_shard, workers=options.workers
    )
    manifest = build(request, source, options.out)
    counts = ", ".join(f"{split.images} {name}" for name, split in manifest.splits.items())
    print(f"{options.out}: {counts} images of shape {manifest.image_shape}; {manifest.release}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data_prep.verify import verify

    problems = verify(options.out, options.workers)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"{options.out}: every shard, count and statistic is right")
    return 1 if problems else 0


def _at_least(bound: int) -> Callable[[str], int]:
    """A type of argument: whole numbers from a bound on."""

    def number(text: str) -> int:
        value = int(text)
        if value < bound:
            raise argparse.ArgumentTypeError(f"must be at least {bound}, not {value}")
        return value

    return number


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, not {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="Prepare images for training.")
    commands = parser.add_subparsers(dest="command", required=True)
    processes = argparse.ArgumentParser(add_help=False)
    processes.add_argument(
        "--workers",
        type=_at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes to use (default: one a processor, here %(default)s)",
    )
    build = commands.add_parser(
        "build",
        parents=[processes],
        help="make a data set",
        description="Make a data set of shards, with a manifest and statistics, in a folder of its own.",
        epilog=DATASETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("demo", "demo_a", "demo_b", "folder", "imagenet64", "imagenet32", "imagenet64_png", "cifar10")
    build.add_argument("dataset", choices=names, metavar="DATASET", help="which data set; see below")
    build.add_argument("--src", type=Path, help="folder (or archive) it is made from; not for demo")
    build.add_argument("--out", type=Path, required=True, help="folder to write; new, empty, or begun before")
    build.add_argument(
        "--size",
        type=_at_least(4),
        metavar="PIXELS",
        help="side of the crops, for demo and folder (default: 16)",
    )
    build.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the photographs kept apart, for folder (default: 0.1)",
    )
    build.add_argument(
        "--seed", type=_seed, metavar="N", help="of split and shuffle, for demo and folder (default: 0)"
    )
    build.add_argument(
        "--images-per-shard",
        type=_at_least(1),
        metavar="N",
        help="largest shard (default: 16 MB, at least 8 shards a split)",
    )
    verify = commands.add_parser(
        "verify",
        parents=[processes],
        help="check a data set",
        description="Read a whole data set again and compare every checksum, entry, count and statistic.",
    )
    verify.add_argument("out", type=Path, metavar="OUT", help="folder of the data set")
    return parser
