"""dualscore figures."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, positive
from dualscore.terminal import final, shared_console
from dualscore.terminal.dry import Plan
from dualscore.terminal.hints import option


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
    figures.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.figures import Request, draw_all
    from dualscore.figures.histogram import draw_energies

    run = arguments.run_folder
    if run.suffix == ".npy":
        _check_energies(arguments)
        for file in draw_energies(run, arguments.dimension, arguments.out or Path("figures")):
            final(shared_console(), f"written to {file}", soft_wrap=True)
        return
    request = Request(run, arguments.out or run / "figures", arguments.other, arguments.overrides)
    draw_all(request, arguments.only, shared_console())


def _check_energies(arguments: argparse.Namespace) -> str:
    """Refuse what cannot be drawn of energies alone."""
    from dualscore.errors import FigureError

    run = arguments.run_folder
    if not run.is_file():
        raise FigureError(f"{run}: no such file")
    if arguments.dimension is None:
        how = option("--dimension", "DIMENSION=…")
        raise FigureError(f"{run}: say of how many dimensions with {how} (4096 for 1×64×64)")
    if arguments.overrides or arguments.other or set(arguments.only) - {"3"}:
        raise FigureError(f"{run}: of energies alone there is figure 3, and neither settings nor --other")
    return f"{run}: energies of images of {arguments.dimension} dimensions"


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands import planning
    from dualscore.figures import check_names

    plan, run = Plan("figures"), arguments.run_folder
    if run.suffix == ".npy":
        plan.check("energies", lambda: _check_energies(arguments))
        return plan.writes(arguments.out or Path("figures"), "figure3.pdf", "figure3.png", "figure3.json")
    plan.check("figures", lambda: ", ".join(check_names(arguments.only)))
    for name, folder in (("run", run), ("other", arguments.other)):
        if folder is not None:
            plan.check(name, planning.told, folder, arguments.overrides)
            if not plan.problems:
                planning.open_model(plan, folder)
    plan.add("work", "what was measured before is not measured again; the rest takes minutes on the demo")
    return plan.writes(arguments.out or run / "figures", "pictures (.pdf, .png) and numbers (.json, .csv)")
