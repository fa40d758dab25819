"""Submits runs and sweeps to Slurm, after everything that can be checked beforehand was."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualscore.cluster.batch_script import Entry, Job, Resources, environment, render
from dualscore.errors import ClusterError, ConfigError, DataError
from dualscore.files.aside import write_aside
from dualscore.runs.folder import Run, newest_run
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.settings.grid import combinations, read_grid, written

LARGEST = 1000
"""Runs of a sweep: what clusters let a job array have (Slurm's MaxArraySize is 1001 unless set)."""
JOB_FILE = "slurm-job"
"""File in a run's folder that holds the id of the job that it was last given to."""

KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_CONF_SERVER")
"""Variables that say which cluster there is."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file declares it."""

    experiment: str
    varied: set[str]
    """The settings of the grid."""
    runs: dict[str, list[str]]
    """Settings of each run, by the name of its folder."""


def load_sweep(name: str, folder: Path | None = None) -> Sweep:
    """Read `sweeps/NAME.yaml`, the working folder's or the shipped one; the grid's last key is fastest."""
    grid = read_grid("sweeps", name, folder, {"grid"})
    chosen = combinations(grid, LARGEST)
    runs = {
        "_".join(_part(key, value) for key, value in values.items()): [
            *grid.settings,
            *(f"{key}={written(value)}" for key, value in values.items()),
        ]
        for values in chosen
    }
    if len(runs) < len(chosen):
        raise grid.wrong("grid", "two combinations would have the same folder; are values repeated?")
    return Sweep(grid.experiment, set(chosen[0]), runs)


def _part(key: str, value: Any) -> str:  # noqa: ANN401 - a plain value out of YAML
    """A setting in a folder's name: data.images=10 as images10."""
    return re.sub(r"[^\w.+-]+", "-", key.rpartition(".")[2] + written(value))


def plan_job(
    name: str, settings: Sequence[str], run_name: str | None, runs: Path, asked: Resources, sweep: bool
) -> Job:
    """The job of an experiment, whose newest run goes on, or of a sweep, a run for each combination.

    Nothing of it is checked yet.
    """
    if not sweep:
        folder = newest_run(run_name or name, runs).folder
        return Job(folder.name, name, (Entry(folder, tuple(settings)),), False, folder, asked)
    declared = load_sweep(name)
    if varied := {setting.partition("=")[0] for setting in settings} & declared.varied:
        raise ConfigError(f"override {min(varied)!r}: the sweep {name} varies it; change its file instead")
    folder = runs / (run_name or name)
    entries = tuple(Entry(folder / run, (*own, *settings)) for run, own in declared.runs.items())
    return Job(folder.name, declared.experiment, entries, True, folder, asked)


def check(job: Job, data_needed: bool = True) -> str:
    """Refuse a job that could only fail after it has waited in the queue; what is wrong with its data, else.

    Data that are not there are refused too where they are needed: a script can be looked at without.
    """
    from dualscore.assemble import find_data, known_density
    from dualscore.data.transfer import is_remote
    from dualscore.evaluation.evaluate_checkpoint import check_estimators
    from dualscore.network_table import check_network

    missing = ""
    settled = job.resources.settings
    for entry in job.entries:
        for setting in entry.settings:
            key, _, value = setting.partition("=")
            if settled.get(key, value) != value:
                raise ConfigError(f"override {setting!r}: --nodes, --gpus and --tasks settle that in a job")
        config = load_experiment(job.experiment, [*entry.settings, *(f"{k}={v}" for k, v in settled.items())])
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
                f"scancel {queued}, or choose another folder with --name …"
            )
    return missing


def _queued(run: Run) -> str | None:
    """The job of a run that waits or runs."""
    file = run.folder / JOB_FILE
    if not file.exists() or shutil.which("squeue") is None:
        return None
    job = file.read_text(encoding="utf-8").strip()
    # Of a job that it has forgotten, squeue says that the id is invalid.
    found = _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    return job if found.stdout.strip() else None


def submit(job: Job) -> str:
    """Write the script of a job that was checked into its folder and give it to Slurm; the job's id."""
    script, file = render(job), job.folder / "job.sh"
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "sbatch: no such command: submit on a login node of a Slurm cluster "
            "(or --dry-run to see the script)"
        )
    for folder in (job.folder, *(entry.folder for entry in job.entries)):
        folder.mkdir(parents=True, exist_ok=True)
    write_aside(file, script.encode())
    result = _slurm("sbatch", "--parsable", str(file), **environment(job))
    if result.returncode:
        # Each of sbatch's lines once, without its own name before them.
        said = [re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in result.stderr.splitlines()]
        reason = "; ".join(dict.fromkeys(line.rstrip(".") for line in said if line))
        raise ClusterError(f"sbatch refuses {file}: {reason or 'it does not say why'}")
    number = result.stdout.strip().partition(";")[0]  # a cluster's name may follow
    for index, entry in enumerate(job.entries):
        identity = f"{number}_{index}" if job.sweep else number
        write_aside(entry.folder / JOB_FILE, f"{identity}\n".encode())
    return number


def _slurm(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # Not those of a job in which this is typed; without its configuration Slurm's commands find no cluster.
    own = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in KEPT}
    environment = own | variables
    return subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
