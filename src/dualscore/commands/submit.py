"""dualscore submit."""

import argparse
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualscore.commands.options import Commands, add_experiment
from dualscore.errors import ConfigError
from dualscore.terminal import final, shared_console

if TYPE_CHECKING:
    from rich.console import Console

    from dualscore.cluster.script import Job


def add(commands: Commands) -> None:
    """Add the command."""
    submit = commands.add_parser("submit", help="give an experiment to a Slurm cluster, new or to go on")
    submit.add_argument("--sweep", action="store_true", help="EXPERIMENT is a file in sweeps/: a job array")
    submit.add_argument("--nodes", type=int, default=1, help="nodes (default: 1)")
    submit.add_argument("--gpus", type=int, default=1, help="GPUs a node; 0 for CPUs (default: 1)")
    submit.add_argument("--tasks", type=int, default=1, help="processes a node without GPUs (default: 1)")
    submit.add_argument("--cpus", type=int, default=4, help="cores a process (default: 4)")
    submit.add_argument("--time", help="time limit, 24:00:00; at its end a job is requeued and goes on")
    submit.add_argument("--partition", help="the cluster's partition")
    submit.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options, for sbatch")
    add_experiment(submit)
    submit.set_defaults(run=_run, plan=_plan)


def _job(arguments: argparse.Namespace) -> "Job":
    from dualscore.cluster.script import Resources
    from dualscore.cluster.submit_job import experiment_job, sweep_job

    try:
        extra = tuple(shlex.split(arguments.sbatch))
    except ValueError as error:
        raise ConfigError(f"--sbatch={arguments.sbatch}: cannot be read: {error}") from error
    resources = Resources(
        nodes=arguments.nodes,
        gpus=arguments.gpus,
        tasks=arguments.tasks,
        cpus=arguments.cpus,
        time=arguments.time,
        partition=arguments.partition,
        extra=extra,
    )
    make = sweep_job if arguments.sweep else experiment_job
    return make(arguments.experiment, arguments.overrides, arguments.name, arguments.runs, resources)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.cluster.submit_job import check, submit

    job = _job(arguments)
    check(job)
    told = f"job {submit(job)} is submitted; script and log are in {job.folder}"
    final(shared_console(), told, soft_wrap=True)


def _plan(arguments: argparse.Namespace) -> "Script":
    from dualscore.cluster.script import render
    from dualscore.cluster.submit_job import check

    job = _job(arguments)
    missing = check(job, data_needed=False)
    return Script(render(job), missing)


@dataclass(frozen=True)
class Script:
    """The plan of a submission: the script itself, which can go on into a file or a pipe."""

    text: str
    missing: str
    """What is not there yet of the data."""

    def show(self, console: "Console") -> None:
        """Print the script; what is missing goes to standard error, so that the script stays one."""
        final(console, self.text, end="", soft_wrap=True)
        if self.missing:
            print(f"note: a real submission would be refused: {self.missing}", file=sys.stderr)
