"""dualscore train."""

import argparse
import os
from pathlib import Path

from dualscore.commands.options import Commands, add_experiment
from dualscore.errors import ConfigError
from dualscore.terminal.dry import Plan
from dualscore.terminal.hints import afresh

_CHOSEN_RUN = "DUALSCORE_RUN"


def add(commands: Commands) -> None:
    """Add the command."""
    train = commands.add_parser("train", help="train an experiment, or go on where it stopped")
    train.add_argument("--fresh", action="store_true", help="start a new run beside the old ones")
    add_experiment(train)
    train.set_defaults(run=_run, plan=_plan)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.runs.folder import Run, fresh_run, newest_run
    from dualscore.settings.experiment import load_experiment

    config = load_experiment(arguments.experiment, arguments.overrides)  # wrong ones are told at once
    from dualscore.train_experiment import leave, train

    if chosen := os.environ.get(_CHOSEN_RUN):
        train(config, Run(Path(chosen)))
    elif arguments.fresh and int(os.environ.get("SLURM_NTASKS") or os.environ.get("WORLD_SIZE") or 1) > 1:
        # Processes started side by side would each count the folders for themselves.
        raise ConfigError(
            f"{afresh()} with several tasks: name the new run yourself, {_CHOSEN_RUN}=runs/NAME-2"
        )
    else:
        run = (fresh_run if arguments.fresh else newest_run)(arguments.name or config.name, arguments.runs)
        # The processes that Lightning starts for other devices inherit this and join the same run.
        os.environ[_CHOSEN_RUN] = str(run.folder)
        try:
            train(config, run)
        finally:
            del os.environ[_CHOSEN_RUN]
    leave()


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.runs.folder import fresh_run, newest_run
    from dualscore.settings.experiment import load_experiment, to_plain

    config = load_experiment(arguments.experiment, arguments.overrides)
    from dualscore.commands import planning
    from dualscore.runs.run_status import Status
    from dualscore.telling import expected, shape_model

    run = (fresh_run if arguments.fresh else newest_run)(arguments.name or config.name, arguments.runs)
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
