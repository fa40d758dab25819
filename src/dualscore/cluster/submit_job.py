"""Submits runs and sweeps to Slurm, after everything that can be checked beforehand was."""

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualscore.cluster.script import JOB_FILE, Entry, Job, Resources, environment, render
from dualscore.errors import ClusterError, ConfigError, DataError
from dualscore.files.aside import write_aside
from dualscore.runs.folder import Run, newest_run
from dualscore.settings.experiment import find, load_experiment, read_yaml, to_plain

LARGEST = 1000
"""Runs of a sweep: what clusters let a job array have (Slurm's MaxArraySize is 1001 unless set)."""
_KEYS = {"experiment", "settings", "grid"}


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file declares it; `grid` names the settings that are varied."""

    experiment: str
    grid: list[str]
    combinations: dict[str, list[str]]
    """Settings of each run, by the name of its folder."""


def load_sweep(name: str, folder: Path | None = None) -> Sweep:
    """Read `sweeps/NAME.yaml`, the working folder's or the shipped one; the grid's last key is fastest."""
    path = find("sweeps", name, folder)
    content = read_yaml(path)
    if unknown := set(content) - _KEYS:
        raise ConfigError(f"{path}: {min(unknown)}: unknown key; known: {', '.join(sorted(_KEYS))}")
    experiment, settings, grid = content.get("experiment"), content.get("settings", []), content.get("grid")
    if not isinstance(experiment, str):
        raise ConfigError(f"{path}: experiment: must be a name")
    if not isinstance(settings, list) or any(not isinstance(s, str) or "=" not in s for s in settings):
        raise ConfigError(f"{path}: settings: must be a list of settings like optim.lr=1e-4")
    if not isinstance(grid, dict) or not grid:
        raise ConfigError(f"{path}: grid: must name settings and the values that each takes")
    for key, values in grid.items():
        if not isinstance(values, list) or not values or any(isinstance(v, dict | list) for v in values):
            raise ConfigError(f"{path}: grid.{key}: must be a list of values")
    combinations = {}
    count = math.prod(map(len, grid.values()))
    for chosen in itertools.product(*grid.values()):
        pairs = list(zip(map(str, grid), chosen, strict=True))
        folder_name = "_".join(_part(key, value) for key, value in pairs)
        combinations[folder_name] = [*settings, *(f"{key}={_text(value)}" for key, value in pairs)]
    if len(combinations) < count:
        raise ConfigError(f"{path}: grid: two combinations would have the same folder; are values repeated?")
    if count > LARGEST:
        raise ConfigError(f"{path}: grid: {count} combinations; {LARGEST} is the most")
    return Sweep(experiment, [str(key) for key in grid], combinations)


def _text(value: Any) -> str:  # noqa: ANN401 - a plain value out of YAML
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _part(key: str, value: Any) -> str:  # noqa: ANN401 - a plain value out of YAML
    """A setting in a folder's name: data.images=10 as images10."""
    return re.sub(r"[^\w.+-]+", "-", key.rpartition(".")[2] + _text(value))


def experiment_job(
    experiment: str, settings: list[str], name: str | None, runs: Path, resources: Resources
) -> Job:
    """The job of one run, not checked yet: the newest of its name goes on."""
    folder = newest_run(name or experiment, runs).folder
    entry = Entry(folder, tuple(settings))
    return Job(folder.name, experiment, (entry,), False, folder, Path.cwd(), Path(sys.executable), resources)


def sweep_job(sweep: str, settings: list[str], name: str | None, runs: Path, resources: Resources) -> Job:
    """The job array of a sweep, not checked yet: a run for each combination, all in one folder."""
    declared = load_sweep(sweep)
    if varied := {s.partition("=")[0] for s in settings} & set(declared.grid):
        raise ConfigError(f"override {min(varied)!r}: the sweep {sweep} varies it; change its file instead")
    folder = runs / (name or sweep)
    entries = tuple(
        Entry(folder / run, (*chosen, *settings)) for run, chosen in declared.combinations.items()
    )
    python = Path(sys.executable)
    return Job(folder.name, declared.experiment, entries, True, folder, Path.cwd(), python, resources)


def check(job: Job, data_needed: bool = True) -> str:
    """Refuse a job that could only fail after it has waited in the queue; what is wrong with its data, else.

    Data that are not there are refused too where they are needed: a script can be looked at without.
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
                f"scancel {queued}, or choose another folder with --name …"
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
    """Write the script of a job that was checked into its folder and give it to Slurm; the job's id."""
    script = render(job)
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "sbatch: no such command: submit on a login node of a Slurm cluster "
            "(or --dry-run to see the script)"
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
