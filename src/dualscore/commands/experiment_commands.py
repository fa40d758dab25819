"""Commands that take an experiment or list what there is: data, train, evaluate, study, submit, status."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dualscore.cluster.batch_script import Resources
from dualscore.commands.options import RUNS, Experiment, Name, Overrides, Runs
from dualscore.errors import ConfigError
from dualscore.runs.launch import RUN, check_launch, check_settings, in_a_group, started_together
from dualscore.terminal.boxes import Plan
from dualscore.terminal.console import command, quiet, shared_console

if TYPE_CHECKING:
    from dualscore.runs.folder import Run
    from dualscore.settings.config import ExperimentConfig


def data(handed_over: Annotated[list[str], "", {"nargs": argparse.REMAINDER}]) -> int:
    """Prepare images for training, and check them: build, verify."""
    from data_prep.cli import main

    return main(handed_over, "dualscore data")


def train(
    experiment: Experiment,
    overrides: Overrides,
    *,
    fresh: Annotated[bool, "start a new run beside the old ones"] = False,
    name: Name = None,
    runs: Runs = RUNS,
    dry_run: bool = False,
) -> Plan | None:
    """Train an experiment, or go on where it stopped."""
    from dualscore.runs.folder import Run, fresh_run, newest_run
    from dualscore.settings.experiment import load_experiment

    config = load_experiment(experiment, overrides)  # before torch is imported: mistakes show at once
    grouped = check_launch(config.trainer.devices, config.trainer.nodes)  # and Lightning, which believes all
    run = (fresh_run if fresh else newest_run)(name or config.name, runs)
    if dry_run:
        from dualscore.commands import planning

        return Plan(f"train {config.name} in {run.folder}", planning.train(config, run))
    from dualscore.train_experiment import leave, train

    if chosen := os.environ.get(RUN):
        train(config, Run(Path(chosen)))
    elif fresh and grouped:
        # Processes started side by side would each count the folders for themselves.
        raise ConfigError(f"--fresh with several tasks: name the new run yourself, {RUN}=runs/NAME-2")
    else:
        with started_together(run.folder, grouped):
            train(config, run)
    leave()
    return None


CheckpointFile = Annotated[
    Path | None,
    "file or run to measure, by its run's settings if it has a run (default: the newest run's best)",
]


def evaluate(
    experiment: Experiment,
    overrides: Overrides,
    *,
    checkpoint: CheckpointFile = None,
    name: Name = None,
    runs: Runs = RUNS,
    dry_run: bool = False,
) -> Plan | None:
    """Measure a trained experiment."""
    from dualscore.runs.folder import Run, newest_run
    from dualscore.settings.experiment import load_experiment

    check_settings()
    if checkpoint is None:
        config = load_experiment(experiment, overrides)  # a misspelt name is told whatever NAME says
        run = newest_run(name or config.name, runs)
        path, output = run.best, run.folder / "evaluation.json"
    else:
        from dualscore.model_files.loading import locate

        path = locate(checkpoint)
        run = Run(path.parent.parent)
        output = (run.folder if checkpoint.is_dir() else path.parent) / "evaluation.json"
    if path.parent == run.checkpoints and run.config_file.exists():
        # What the run was trained with, not what the experiment's file says today.
        config, settings = _stored(run, experiment, overrides), str(run.config_file)
    else:
        config, settings = load_experiment(experiment, overrides), f"experiments/{experiment}.yaml"
    grouped = in_a_group() and check_launch(config.trainer.devices, config.trainer.nodes)
    if dry_run:
        from dualscore.commands import planning

        return Plan("evaluate", planning.evaluate(config, settings, path, output))
    from dualscore.evaluation import evaluate
    from dualscore.telling import tell_results
    from dualscore.train_experiment import leave

    quiet()
    with started_together(run.folder, grouped):
        tell_results(evaluate(config, path, output, shared_console()), output, path)
    leave()
    return None


def _stored(run: "Run", experiment: str, overrides: list[str]) -> "ExperimentConfig":
    """A run's settings; if credentials were left out of its data path, the experiment's path."""
    from dualscore.redaction import restore, restore_needed
    from dualscore.settings.experiment import load_experiment, override_config

    stored = run.read_config()
    section = stored.get("data")
    given = [o.partition("=")[2] for o in overrides if o.startswith("data.path=")]
    if isinstance(section, dict) and given:
        section["path"] = given[-1]
    elif isinstance(section, dict) and restore_needed(path := str(section.get("path"))):
        section["path"] = restore(path, load_experiment(experiment).data.path)
    return override_config(stored, overrides, str(run.config_file))


def study(
    study: Annotated[str, "name of a file in studies/, without .yaml"], *, dry_run: bool = False
) -> Plan | None:
    """Compare variants of an experiment, or go on where it stopped."""
    from dualscore.study.variants import load_study

    check_settings()
    declared = load_study(study)
    if dry_run:
        from dualscore.commands import planning

        return Plan("study", planning.study(declared))
    from dualscore.study.run_variants import run_study

    quiet()
    console = shared_console()
    files = run_study(declared, console)
    console.results([files[0].read_text(encoding="utf-8"), f"written to {', '.join(map(str, files))}"])
    return None


def submit(
    experiment: Experiment,
    overrides: Overrides,
    *,
    sweep: Annotated[bool, "EXPERIMENT is a file in sweeps/: a job array"] = False,
    resources: Resources = Resources(),
    name: Name = None,
    runs: Runs = RUNS,
    dry_run: bool = False,
) -> None:
    """Give an experiment to a Slurm cluster, new or to go on."""
    from dualscore.cluster import submit_job
    from dualscore.cluster.batch_script import render

    job = submit_job.plan_job(experiment, overrides, name, runs, resources, sweep)
    missing = submit_job.check(job, data_needed=not dry_run)
    if not dry_run:
        said = f"job {submit_job.submit(job)} is submitted; script and log are in {job.folder}"
        shared_console().final(said, soft_wrap=True)
        return
    shared_console().final(render(job), end="", soft_wrap=True)
    if missing:  # to standard error, so that the output is the script alone
        print(f"note: a real submission would be refused: {missing}", file=sys.stderr)


def status(*, runs: Runs = RUNS) -> None:
    """List runs: step, bits/dim, speed, time left, state."""
    from rich.console import Group
    from rich.text import Text

    from dualscore.runs.run_status import COLUMNS, SPARE, all_runs
    from dualscore.terminal.boxes import fitting

    console = shared_console()
    rows, reasons = all_runs(runs)
    if not rows:
        starts = command("train", "EXPERIMENT", variables={"EXP": "…"})
        console.final(f"no runs in {runs}; {starts} starts one", soft_wrap=True)
        return
    why = (Text(reason, style="dim") for reason in reasons)
    console.final(Group(fitting(console, COLUMNS, rows, SPARE), *why))


def experiments() -> None:
    """List the experiments: what they are, what they need, whether their data are there."""
    from rich.padding import Padding
    from rich.text import Text

    from dualscore.settings.experiment import available, read_header

    console = shared_console()
    for name in available():
        header = read_header(name)
        needs = f"{header.hardware}. Takes: {header.takes}. Data: {header.data}"
        console.final(Text(name, style="bold"))
        for text in (Text(header.purpose), Text(needs, style="dim")):
            console.final(Padding(text, (0, 0, 0, 4), expand=False))
