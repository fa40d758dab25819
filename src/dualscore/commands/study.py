"""dualscore study."""

import argparse

from dualscore.commands.options import Commands
from dualscore.terminal.dry import Plan


def add(commands: Commands) -> None:
    """Add the command."""
    study = commands.add_parser("study", help="compare variants of an experiment, or go on where it stopped")
    study.add_argument("study", help="name of a file in studies/, without .yaml")
    study.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.study import load_study, run_study
    from dualscore.terminal import shared_console

    run_study(load_study(arguments.study), shared_console())


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands import planning
    from dualscore.settings.experiment import load_experiment
    from dualscore.study import load_study
    from dualscore.study.run_variants import run_folder
    from dualscore.study.variants import STUDIES

    study, plan = load_study(arguments.study), Plan("study")
    out = STUDIES / study.name
    plan.add("study", study.purpose)
    runs = [(v, run_folder(out, v, seed)) for seed in study.seeds for v in study.variants]
    there = sum(run.best.exists() for _, run in runs)
    plan.add(
        "runs",
        f"{len(runs)} of {len(study.variants)} variants, one after another; {there} are there or begun",
    )
    seen = set()
    for variant in study.variants:
        config = load_experiment(variant.experiment, variant.overrides)
        if (config.data.path, config.data.density) not in seen:
            seen.add((config.data.path, config.data.density))
            planning.data(plan, config)
    if study.seconds is not None:
        minutes = study.seconds * len(runs) / 60
        plan.add(
            "time",
            f"{study.seconds:g} s a run, {minutes:,.0f} minutes in all, and validations and evaluations",
        )
    else:
        plan.add("time", f"{study.steps:,} steps a run; how long one takes is measured first")
    return plan.writes(out, "table.md", "results.json", "learning.png", "learning.pdf", "runs/")
