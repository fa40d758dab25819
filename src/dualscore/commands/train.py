"""dualscore train."""

import argparse
import os
from pathlib import Path

from dualscore.commands.options import Commands, add_experiment
from dualscore.errors import ConfigError

_CHOSEN_RUN = "DUALSCORE_RUN"


def add(commands: Commands) -> None:
    """Add the command."""
    train = commands.add_parser("train", help="train an experiment, or go on where it stopped")
    train.add_argument("--fresh", action="store_true", help="start a new run beside the old ones")
    add_experiment(train)
    train.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.experiment import load_experiment
    from dualscore.runs import Run, fresh_run, newest_run
    from dualscore.train import leave, train

    config = load_experiment(arguments.experiment, arguments.overrides)
    if chosen := os.environ.get(_CHOSEN_RUN):
        train(config, Run(Path(chosen)))
    elif arguments.fresh and int(os.environ.get("SLURM_NTASKS") or os.environ.get("WORLD_SIZE") or 1) > 1:
        # Processes started side by side would each count the folders for themselves.
        raise ConfigError(f"FRESH=1 with several tasks: name the new run yourself, {_CHOSEN_RUN}=runs/NAME-2")
    else:
        run = (fresh_run if arguments.fresh else newest_run)(arguments.name or config.name, arguments.runs)
        # The processes that Lightning starts for other devices inherit this and join the same run.
        os.environ[_CHOSEN_RUN] = str(run.folder)
        try:
            train(config, run)
        finally:
            del os.environ[_CHOSEN_RUN]
    leave()
