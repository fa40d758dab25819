"""dualscore figures."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, positive, wide_console


def add(commands: Commands) -> None:
    """Add the command."""
    figures = commands.add_parser("figures", help="the paper's figures and tables of a run")
    figures.add_argument(
        "run_folder", metavar="run", type=Path, help="a run's folder, or a .npy file of energies in nats"
    )
    figures.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the run's, as data.path=…"
    )
    figures.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NUMBER",
        help="table1, table2, 1, 2, 3, 4 or 5 (default: all)",
    )
    figures.add_argument("--other", type=Path, help="a run on other images, for figure 2")
    figures.add_argument("--out", type=Path, help="folder for the files (default: the run's folder figures)")
    figures.add_argument("--dimension", type=positive, help="d = C·H·W of the images of a .npy file")
    figures.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.errors import FigureError
    from dualscore.figures import Request, draw_all
    from dualscore.figures.histogram import draw_energies

    run = arguments.run_folder
    if run.suffix == ".npy":
        if arguments.dimension is None:
            raise FigureError(f"{run}: say of how many dimensions with --dimension (4096 for 1×64×64)")
        if arguments.overrides or arguments.other or set(arguments.only) - {"3"}:
            raise FigureError(f"{run}: of energies alone there is figure 3, and neither settings nor --other")
        for file in draw_energies(run, arguments.dimension, arguments.out or Path("figures")):
            print(f"written to {file}")
        return
    request = Request(run, arguments.out or run / "figures", arguments.other, arguments.overrides)
    draw_all(request, arguments.only, wide_console())
