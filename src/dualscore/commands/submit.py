"""dualscore submit."""

import argparse
import shlex

from dualscore.commands.options import Commands, add_experiment
from dualscore.errors import ConfigError


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
    submit.add_argument("--dry", action="store_true", help="print the script; submit nothing")
    add_experiment(submit)
    submit.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.cluster.script import Resources, render
    from dualscore.cluster.submit import check, experiment_job, submit, sweep_job

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
    job = make(arguments.experiment, arguments.overrides, arguments.name, arguments.runs, resources)
    check(job)
    if arguments.dry:
        print(render(job), end="")
    else:
        print(f"job {submit(job)} is submitted; script and log are in {job.folder}")
