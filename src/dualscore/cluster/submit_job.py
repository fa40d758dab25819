"""Gives runs to Slurm, after everything that can be checked beforehand was."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dualscore.cluster.script import JOB_FILE, Entry, Job, Resources, environment, render
from dualscore.cluster.sweep import load_sweep
from dualscore.errors import ClusterError, ConfigError, DataError
from dualscore.files.aside import write_aside
from dualscore.runs.folder import Run, newest_run
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.terminal.hints import option


def experiment_job(
    experiment: str, settings: list[str], name: str | None, runs: Path, resources: Resources
) -> Job:
    """The job of one run: the newest of its name goes on.

    Args:
        experiment: the experiment's name.
        settings: overrides.
        name: the run's name; None for the experiment's.
        runs: folder of all runs.
        resources: what to ask for.

    Returns:
        The job, not checked yet.
    """
    folder = newest_run(name or experiment, runs).folder
    entry = Entry(folder, tuple(settings))
    return Job(folder.name, experiment, (entry,), False, folder, Path.cwd(), Path(sys.executable), resources)


def sweep_job(sweep: str, settings: list[str], name: str | None, runs: Path, resources: Resources) -> Job:
    """The job array of a sweep: a run for each combination, all in one folder.

    Args:
        sweep: the sweep's name.
        settings: overrides for every run.
        name: the folder's name; None for the sweep's.
        runs: folder of all runs.
        resources: what each run asks for.

    Returns:
        The job, not checked yet.

    Raises:
        ConfigError: if there is no such sweep, or a setting would undo what it varies.
    """
    declared = load_sweep(sweep)
    if varied := {s.partition("=")[0] for s in settings} & set(declared.grid):
        raise ConfigError(f"override {min(varied)!r}: the sweep {sweep} varies it; change its file instead")
    folder = runs / (name or sweep)
    entries = tuple(
        Entry(folder / combination.name, (*combination.settings, *settings))
        for combination in declared.combinations
    )
    return Job(
        folder.name, declared.experiment, entries, True, folder, Path.cwd(), Path(sys.executable), resources
    )


def check(job: Job, data_needed: bool = True) -> str:
    """Refuse a job that could only fail after it has waited in the queue.

    Args:
        job: the job.
        data_needed: whether data that are not there refuse it, too: a script can be looked at without.

    Returns:
        What is wrong with the data, where they are not needed; nothing if all is well.

    Raises:
        DualscoreError: one line: a setting, the data, the folder or a job that is still in the queue.
    """
    from dualscore.assemble import find_data, known_density
    from dualscore.data.transfer import is_remote
    from dualscore.evaluation.evaluation_stages import check_estimators
    from dualscore.network_table import check_network

    missing = ""
    settled = {setting.partition("=")[0]: setting for setting in job.resources.settings}
    for entry in job.entries:
        for setting in entry.settings:
            if settled.get(setting.partition("=")[0], setting) != setting:
                raise ConfigError(f"override {setting!r}: --nodes, --gpus and --tasks settle that in a job")
        config = load_experiment(job.experiment, [*entry.settings, *job.resources.settings])
        check_network(config)
        check_estimators(config)
        try:
            if known_density(config) is None and (data_needed or not is_remote(config.data.path)):
                find_data(config)
        except DataError as error:
            if data_needed or (Path(config.data.path) / "manifest.json").exists():
                raise
            missing = missing or str(error)
        run = Run(entry.folder)
        run.check_same(to_plain(config))
        if (queued := _queued(run)) is not None:
            raise ClusterError(
                f"{run.folder}: job {queued} is in the queue for it; wait for it, end it with "
                f"scancel {queued}, or choose another folder with {option('--name …', 'NAME=…')}"
            )
    return missing


def _queued(run: Run) -> str | None:
    """The job of a run that waits or runs."""
    file = run.folder / JOB_FILE
    if not file.exists() or shutil.which("squeue") is None:
        return None
    job = file.read_text(encoding="utf-8").strip()
    found = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True, check=False
    )
    # Of a job that it has forgotten, squeue says that the id is invalid.
    return job if found.stdout.strip() else None


def _reason(said: str) -> str:
    """What sbatch says, in one line: each of its lines once, without its own name before them."""
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line)) or "it does not say why"


def submit(job: Job) -> str:
    """Write a job's script into its folder and give it to Slurm.

    Args:
        job: a job that was checked.

    Returns:
        The job's id.

    Raises:
        ClusterError: if Slurm is not there or does not take it.
    """
    script = render(job)
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "sbatch: no such command: submit on a login node of a Slurm cluster "
            f"(or {option('--dry-run', 'DRY=1')} to see the script)"
        )
    for folder in (job.folder, *(entry.folder for entry in job.entries)):
        folder.mkdir(parents=True, exist_ok=True)
    write_aside(job.script, script.encode())
    result = subprocess.run(
        ["sbatch", "--parsable", str(job.script)],
        env=os.environ | environment(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise ClusterError(f"sbatch refuses {job.script}: {_reason(result.stderr)}")
    number = result.stdout.strip().partition(";")[0]  # a cluster's name may follow
    for index, entry in enumerate(job.entries):
        identity = f"{number}_{index}" if job.sweep else number
        write_aside(entry.folder / JOB_FILE, f"{identity}\n".encode())
    return number
