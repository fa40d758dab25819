"""Commands that take an experiment or list what there is: data, train, evaluate, study, submit, status."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from dualscore.cluster.batch_script import Resources
from dualscore.commands.options import RUNS, Experiment, Name, Overrides, Runs
from dualscore.errors import ConfigError
from dualscore.terminal import final, quiet, shared_console
from dualscore.terminal.boxes import Plan
from dualscore.terminal.hints import command

if TYPE_CHECKING:
    from dualscore.runs.folder import Run
    from dualscore.settings.config import ExperimentConfig

_CHOSEN_RUN = "DUALSCORE_RUN"


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
    find = fresh_run if fresh else newest_run
    if dry_run:
        return _plan_training(config, find(name or config.name, runs))
    from dualscore.train_experiment import leave, train

    if chosen := os.environ.get(_CHOSEN_RUN):
        train(config, Run(Path(chosen)))
    elif fresh and int(os.environ.get("SLURM_NTASKS") or os.environ.get("WORLD_SIZE") or 1) > 1:
        # Processes started side by side would each count the folders for themselves.
        raise ConfigError(f"--fresh with several tasks: name the new run yourself, {_CHOSEN_RUN}=runs/NAME-2")
    else:
        run = find(name or config.name, runs)
        # The processes that Lightning starts for other devices inherit this and join the same run.
        os.environ[_CHOSEN_RUN] = str(run.folder)
        try:
            train(config, run)
        finally:
            del os.environ[_CHOSEN_RUN]
    leave()
    return None


def _plan_training(config: "ExperimentConfig", run: "Run") -> Plan:
    from dualscore.commands import planning
    from dualscore.runs.run_status import Status
    from dualscore.settings.experiment import to_plain
    from dualscore.telling import expected, shape_model

    options, plan = config.trainer, Plan(f"train {config.name} in {run.folder}")
    status = Status.read(run.folder)
    step = status.step if status is not None and run.kept() else 0
    plan.add("start", f"goes on from step {step:,}" if step else "a new run, from step 0")
    plan.check("settings", lambda: run.check_same(to_plain(config)))
    plan.check("folder", run.check_free)
    planning.data(plan, config)
    plan.check("model", lambda: shape_model(config))
    plan.check("devices", lambda: planning.devices(config))
    left = max(0, options.max_steps - step)
    plan.add("work", f"{left:,} steps of {config.data.batch_size} images, {options.precision}")
    plan.add("time", expected(run.folder, left * config.data.batch_size, config))
    return plan.writes(run.folder, "checkpoints/", "evaluation.json", "config.yaml", "events.out.tfevents.…")


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
    target = _find_target(
        experiment, overrides, checkpoint, name, runs
    )  # before torch: mistakes show at once
    if dry_run:
        return _plan_evaluation(target)
    from dualscore.evaluation import evaluate
    from dualscore.telling import tell_results
    from dualscore.train_experiment import leave

    report = evaluate(target.config, target.checkpoint, target.output)
    tell_results(report, target.output, target.checkpoint)
    leave()
    return None


class _Target(NamedTuple):
    """What is measured."""

    config: "ExperimentConfig"
    settings: str
    """Where its settings come from."""
    checkpoint: Path
    output: Path


def _find_target(
    experiment: str, overrides: list[str], given: Path | None, name: str | None, runs: Path
) -> _Target:
    """The checkpoint to measure, with the settings its run was trained with if it has a run."""
    from dualscore.runs.folder import Run, newest_run
    from dualscore.settings.experiment import load_experiment

    if given is None:
        config = load_experiment(experiment, overrides)
        run = newest_run(name or config.name, runs)
        checkpoint, output = run.best, run.folder / "evaluation.json"
    else:
        from dualscore.model_files.loading import locate

        checkpoint = locate(given)
        run = Run(checkpoint.parent.parent)
        output = (run.folder if given.is_dir() else checkpoint.parent) / "evaluation.json"
    if (given is None or checkpoint.parent == run.checkpoints) and run.config_file.exists():
        # What the run was trained with, not what the experiment's file says today.
        return _Target(_stored(run, experiment, overrides), str(run.config_file), checkpoint, output)
    config = load_experiment(experiment, overrides)
    return _Target(config, f"experiments/{config.name}.yaml", checkpoint, output)


def _stored(run: "Run", experiment: str, overrides: list[str]) -> "ExperimentConfig":
    """A run's settings; if credentials were left out of its data path, the experiment's path."""
    from dualscore.redaction import restore, restore_needed
    from dualscore.settings.experiment import load_experiment, override_config

    stored = run.read_config()
    section = stored.get("data")
    if isinstance(section, dict):
        path = str(section.get("path"))
        given = [o.partition("=")[2] for o in overrides if o.startswith("data.path=")]
        if given:
            section["path"] = given[-1]
        elif restore_needed(path):
            section["path"] = restore(path, load_experiment(experiment, []).data.path)
    return override_config(stored, overrides, str(run.config_file))


def _plan_evaluation(target: _Target) -> Plan:
    from dualscore.commands import planning
    from dualscore.evaluation import is_complete
    from dualscore.evaluation.evaluation_stages import costs
    from dualscore.runs.checkpoints import read_checkpoint
    from dualscore.runs.folder import check_architecture
    from dualscore.settings.experiment import to_plain

    config, plan = target.config, Plan("evaluate")
    plan.add("settings", target.settings)

    def opens() -> str:
        content = read_checkpoint(target.checkpoint)
        check_architecture(target.checkpoint, content["dualscore"]["config"], to_plain(config))
        return f"{target.checkpoint}, step {int(content['global_step']):,}"

    plan.check("checkpoint", opens)
    counts = planning.data(plan, config)
    plan.add("device", f"{config.trainer.devices * config.trainer.nodes} × {config.trainer.accelerator}")
    for name, text in costs(config, counts, "test" if "test" in counts else "val"):
        plan.add(name, text)
    if is_complete(target.output, target.checkpoint):
        plan.add("measured", "already, as far as the same was asked for; that is not measured again")
    return plan.writes(target.output.parent, "evaluation.json", "evaluation/")


def study(
    study: Annotated[str, "name of a file in studies/, without .yaml"], *, dry_run: bool = False
) -> Plan | None:
    """Compare variants of an experiment, or go on where it stopped."""
    from dualscore.study.variants import load_study

    if dry_run:
        return _plan_study(study)
    from dualscore.study.run_variants import run_study

    console = shared_console()
    quiet()
    files = run_study(load_study(study), console)
    console.final(files[0].read_text(encoding="utf-8"), soft_wrap=True)
    console.final(f"written to {', '.join(map(str, files))}", soft_wrap=True)
    return None


def _plan_study(name: str) -> Plan:
    from dualscore.commands import planning
    from dualscore.settings.experiment import load_experiment
    from dualscore.study.run_variants import run_folder
    from dualscore.study.variants import STUDIES, load_study

    study, plan = load_study(name), Plan("study")
    out = STUDIES / study.name
    plan.add("study", study.purpose)
    runs = [(v, run_folder(out, v, seed)) for seed in study.seeds for v in study.variants]
    there = sum(run.best.exists() for _, run in runs)
    counted = f"{len(runs)} of {len(study.variants)} variants, one after another"
    plan.add("runs", f"{counted}; {there} are there or begun")
    seen = set()
    for variant in study.variants:
        config = load_experiment(variant.experiment, variant.overrides)
        if (config.data.path, config.data.density) not in seen:
            seen.add((config.data.path, config.data.density))
            planning.data(plan, config)
    if study.seconds is not None:
        minutes = f"{study.seconds * len(runs) / 60:,.0f} minutes in all"
        plan.add("time", f"{study.seconds:g} s a run, {minutes}, and validations and evaluations")
    else:
        plan.add("time", f"{study.steps:,} steps a run; how long one takes is measured first")
    return plan.writes(out, "table.md", "results.json", "learning.png", "learning.pdf", "runs/")


def submit(
    experiment: Experiment,
    overrides: Overrides,
    *,
    sweep: Annotated[bool, "EXPERIMENT is a file in sweeps/: a job array"] = False,
    resources: Resources,
    name: Name = None,
    runs: Runs = RUNS,
    dry_run: bool = False,
) -> None:
    """Give an experiment to a Slurm cluster, new or to go on."""
    from dualscore.cluster.batch_script import render
    from dualscore.cluster.submit_job import check, plan_job
    from dualscore.cluster.submit_job import submit as submit_job

    job = plan_job(experiment, overrides, name, runs, resources, sweep)
    missing = check(job, data_needed=not dry_run)
    if not dry_run:
        said = f"job {submit_job(job)} is submitted; script and log are in {job.folder}"
        final(shared_console(), said, soft_wrap=True)
        return
    final(shared_console(), render(job), end="", soft_wrap=True)
    if missing:  # to standard error, so that the output is the script alone
        print(f"note: a real submission would be refused: {missing}", file=sys.stderr)


def status(*, runs: Runs = RUNS) -> None:
    """List runs: step, bits/dim, speed, time left, state."""
    from dualscore.runs.run_status import table

    shown = table(runs, shared_console())
    starts = command("train", "EXPERIMENT", variables={"EXP": "…"})
    final(shared_console(), shown or f"no runs in {runs}; {starts} starts one", soft_wrap=not shown)


def experiments() -> None:
    """List the experiments: what they are, what they need, whether their data are there."""
    from rich.padding import Padding
    from rich.text import Text

    from dualscore.settings.experiment import available, read_header

    console = shared_console()
    for name in available():
        header = read_header(name)
        needs = f"{header.hardware}. Takes: {header.takes}. Data: {header.data}"
        final(console, Text(name, style="bold"))
        for text in (Text(header.purpose), Text(needs, style="dim")):
            final(console, Padding(text, (0, 0, 0, 4), expand=False))
