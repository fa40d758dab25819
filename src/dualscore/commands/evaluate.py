"""dualscore evaluate."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dualscore.commands.options import Commands, add_experiment
from dualscore.terminal.dry import Plan

if TYPE_CHECKING:
    from dualscore.runs.folder import Run
    from dualscore.settings.config import ExperimentConfig


def add(commands: Commands) -> None:
    """Add the command."""
    evaluate = commands.add_parser("evaluate", help="measure a trained experiment")
    shown = "file or run to measure, by its run's settings if it has a run (default: the newest run's best)"
    evaluate.add_argument("--checkpoint", type=Path, help=shown)
    add_experiment(evaluate)
    evaluate.set_defaults(run=_run, plan=_plan)


class Target(NamedTuple):
    """What is measured."""

    config: "ExperimentConfig"
    settings: str
    """Where its settings come from."""
    checkpoint: Path
    output: Path


def find_target(arguments: argparse.Namespace) -> Target:
    """What to measure, and by which settings: those that its run was trained with, wherever it has a run.

    Args:
        arguments: of the command.

    Returns:
        The checkpoint with its settings; nothing was opened yet.

    Raises:
        DualscoreError: one line for people.
    """
    from dualscore.runs.folder import Run, newest_run
    from dualscore.settings.experiment import load_experiment

    if arguments.checkpoint is None:
        config = load_experiment(arguments.experiment, arguments.overrides)
        run = newest_run(arguments.name or config.name, arguments.runs)
        where = _file(config)
        if run.config_file.exists():
            # What the run was trained with, not what the experiment's file says today.
            config, where = _stored(run, arguments), str(run.config_file)
        return Target(config, where, run.best, run.folder / "evaluation.json")
    from dualscore.model_files.loading import locate

    checkpoint = locate(arguments.checkpoint)
    run, whole = Run(checkpoint.parent.parent), arguments.checkpoint.is_dir()
    output = (run.folder if whole else checkpoint.parent) / "evaluation.json"
    if checkpoint.parent == run.checkpoints and run.config_file.exists():
        return Target(_stored(run, arguments), str(run.config_file), checkpoint, output)
    config = load_experiment(arguments.experiment, arguments.overrides)
    return Target(config, _file(config), checkpoint, output)


def _stored(run: "Run", arguments: argparse.Namespace) -> "ExperimentConfig":
    from dualscore.redaction import restore
    from dualscore.settings.experiment import load_experiment, override_config

    stored = run.read_config()
    data = stored.get("data")
    if isinstance(data, dict):
        path = str(data.get("path"))
        given = [o.partition("=")[2] for o in arguments.overrides if o.startswith("data.path=")]
        if given:
            data["path"] = given[-1]
        elif restore_needed(path):
            data["path"] = restore(path, load_experiment(arguments.experiment, []).data.path)
    return override_config(stored, arguments.overrides, str(run.config_file))


def restore_needed(path: str) -> bool:
    """Whether a stored data path is not the whole: credentials and commands are not kept."""
    from dualscore.redaction import COMMAND, HIDDEN

    return path.startswith(COMMAND) or HIDDEN in path


def _file(config: "ExperimentConfig") -> str:
    return f"experiments/{config.name}.yaml"


def _run(arguments: argparse.Namespace) -> None:
    target = find_target(arguments)  # what is wrong is told at once
    from dualscore.evaluation import evaluate
    from dualscore.telling import tell_results
    from dualscore.train_experiment import leave

    report = evaluate(target.config, target.checkpoint, target.output)
    tell_results(report, target.output, target.checkpoint)
    leave()


def _plan(arguments: argparse.Namespace) -> Plan:
    target, plan = find_target(arguments), Plan("evaluate")
    from dualscore.commands import planning
    from dualscore.evaluation import is_complete
    from dualscore.evaluation.evaluation_stages import costs
    from dualscore.runs.checkpoints import read_checkpoint
    from dualscore.runs.folder import check_architecture
    from dualscore.settings.experiment import to_plain

    config = target.config
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
