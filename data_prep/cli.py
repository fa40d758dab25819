"""Command line: ``dualscore data build …`` and ``dualscore data verify …``, or ``python -m data_prep …``."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dualscore.commands.options import seed_number
from dualscore.commands.parser import Parser, add_general
from dualscore.cores import own_cores
from dualscore.errors import DataError, DualscoreError
from dualscore.redaction import complaint, shown
from dualscore.terminal.boxes import Plan, Row, writes
from dualscore.terminal.console import shared_console, speaking
from dualscore.terminal.whole_command import run_whole

if TYPE_CHECKING:
    from data_prep.plan import Request, Source

DEFAULTS = {"size": 16, "val_fraction": 0.1, "test_fraction": 0.1, "seed": 0}
OPTIONS = {
    "src": "--src",
    "size": "--size",
    "val_fraction": "--val-fraction",
    "test_fraction": "--test-fraction",
    "seed": "--seed",
}
REPEATED = "An interrupted build goes on when the same command is given again."


def main(arguments: Sequence[str] | None = None, prog: str = "python -m data_prep") -> int:
    """Run the command line, called `prog`; returns the exit status, 0 or 1 (130 after Ctrl-C)."""

    def command() -> int:
        options = _parser(prog).parse_args(arguments)
        typed = shown(f"{prog} {shlex.join(sys.argv[1:] if arguments is None else arguments)}")
        with speaking(getattr(options, "quiet", False), getattr(options, "log_file", None), typed):
            return _run(options)

    return run_whole(command, last=arguments is None)


def _run(options: argparse.Namespace) -> int:
    plan, run = (_plan_build, _build) if options.command == "build" else (_plan_verify, _verify)
    try:
        if getattr(options, "dry_run", False):
            plan(options).show(shared_console())
            return 0
        return run(options)
    except (DualscoreError, OSError) as error:
        print(f"error: {complaint(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: give the same command again to go on", file=sys.stderr)
        return 130


def _say(text: str) -> None:
    shared_console().final(text, soft_wrap=True)


def _request(options: argparse.Namespace) -> "tuple[Request, Source]":
    """What is asked for, every option given or its default; DataError for one that does not fit."""
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
    shares = {name: given[name] for name in ("val_fraction", "test_fraction") if given[name] is not None}
    for name, fraction in shares.items():
        if not 0 < fraction < 1:
            raise DataError(f"{OPTIONS[name]} must lie between 0 and 1, not {fraction}")
    if (total := sum(shares.values())) >= 1:
        raise DataError(f"--val-fraction and --test-fraction leave nothing to train on: together {total:g}")
    request = Request(
        options.dataset, **given, images_per_shard=options.images_per_shard, workers=options.workers
    )
    return request, source


def _build(options: argparse.Namespace) -> int:
    from data_prep.build import build

    manifest = build(*_request(options), options.out)
    counts = ", ".join(f"{split.images} {name}" for name, split in manifest.splits.items())
    _say(f"{options.out}: {counts} images of shape {manifest.image_shape}; {manifest.release}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data_prep.verify import verify

    problems = verify(options.out, options.workers)
    for problem in problems:
        print(f"error: {shown(problem)}", file=sys.stderr)
    if not problems:
        _say(f"{options.out}: every shard, count and statistic is right")
    return 1 if problems else 0


def _plan_build(options: argparse.Namespace) -> Plan:
    from data_prep.build import preview

    request, source = _request(options)

    def rows() -> Iterator[Row]:
        yield from preview(request, source, options.out)
        crops = ("photographs.npz",) if "size" in source.uses else ()
        yield writes(options.out, "shards (.tar)", "manifest.json", "spectrum.npy", *crops)

    return Plan(f"prepare {options.dataset}", rows())


def _plan_verify(options: argparse.Namespace) -> Plan:
    from dualscore.data.shards import Manifest

    def rows() -> Iterator[Row]:
        splits = Manifest.load(options.out).splits.values()
        shards = [shard for split in splits for shard in split.shards]
        images, size = sum(s.images for s in splits), sum(shard.bytes for shard in shards) / 2**20
        yield "reads", f"{options.out}: {images:,} images in {len(shards)} shards, {size:,.0f} MB"
        yield "work", f"every checksum, entry and statistic, by {options.workers} processes"

    return Plan("verify", rows())


def _at_least(bound: int) -> Callable[[str], int]:
    """A type of argument: whole numbers from a bound on."""

    def number(text: str) -> int:
        value = int(text)
        if value < bound:
            raise argparse.ArgumentTypeError(f"must be at least {bound}, not {value}")
        return value

    return number


def _parser(prog: str) -> argparse.ArgumentParser:
    from data_prep.sources import SOURCES

    listed = "\n".join(f"  {name:15} {source.about}" for name, source in SOURCES.items())
    parser = Parser(prog=prog, description="Prepare images for training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    processes = Parser(add_help=False)
    processes.add_argument(
        "--workers",
        type=_at_least(1),
        default=own_cores(),
        metavar="N",
        help="processes to use (default: one a core that the job has, here %(default)s)",
    )
    build = commands.add_parser(
        "build",
        parents=[processes],
        help="make a data set",
        description="Make a data set of shards, with a manifest and statistics, in a folder of its own.",
        epilog=f"data sets:\n{listed}\n\n{REPEATED}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("dataset", choices=tuple(SOURCES), metavar="DATASET", help="which data set; see below")
    build.add_argument("--src", type=Path, help="folder (or archive) it is made from; not for demo")
    build.add_argument("--out", type=Path, required=True, help="folder to write; new, empty, or begun before")
    build.add_argument(
        "--size",
        type=_at_least(4),
        metavar="PIXELS",
        help="side of the crops, for demo, folder and bsds500 (default: 16)",
    )
    build.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the photographs kept for validation, for folder (default: 0.1)",
    )
    build.add_argument(
        "--test-fraction",
        type=float,
        metavar="F",
        help="share of the photographs kept for test, for folder (default: 0.1)",
    )
    build.add_argument(
        "--seed",
        type=seed_number,
        metavar="N",
        help="of split and shuffle, for demo, folder and bsds500 (default: 0)",
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
    for each in (parser, build, verify):
        add_general(each)
    return parser
