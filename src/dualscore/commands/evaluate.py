"""dualscore evaluate."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands, add_experiment


def add(commands: Commands) -> None:
    """Add the command."""
    evaluate = commands.add_parser("evaluate", help="measure a trained experiment")
    evaluate.add_argument("--checkpoint", type=Path, help="file to measure; default: the newest run's best")
    add_experiment(evaluate)
    evaluate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.evaluation import evaluate
    from dualscore.experiment import load_experiment, override_config
    from dualscore.redaction import restore
    from dualscore.runs import newest_run
    from dualscore.train import leave

    config = load_experiment(arguments.experiment, arguments.overrides)
    run = newest_run(arguments.name or config.name, arguments.runs)
    if arguments.checkpoint is None and run.config_file.exists():
        # What the run was trained with, not what the experiment's file says today.
        stored = run.read_config()
        if isinstance(data := stored.get("data"), dict):
            given = any(override.startswith("data.path=") for override in arguments.overrides)
            data["path"] = config.data.path if given else restore(str(data.get("path")), config.data.path)
        config = override_config(stored, arguments.overrides, str(run.config_file))
    checkpoint = arguments.checkpoint or run.best
    output = run.folder if arguments.checkpoint is None else checkpoint.parent
    evaluate(config, checkpoint, output / "evaluation.json")
    leave()
