"""The batch script of a job, as a pure function of what it should run and on what: `job.sh`, filled in."""

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from dualscore.errors import ClusterError, ConfigError
from dualscore.redaction import redact

NOTICE = 90
"""Seconds before the time limit at which a run is told to stop."""
SHORTEST = 300
"""Seconds that a job must be given, so that it gets anywhere before that."""
SECRET, PLACE = "data.path=", "DUALSCORE_DATA_PATH"
"""The setting that may hold credentials, and the variable that a job then has its value from."""

_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
_NEEDED = f': "${{{PLACE}:?holds the place of the data with its credentials, which this script does not}}"\n'


@dataclass(frozen=True)
class Resources:
    """What a job asks the cluster for: the options of `dualscore submit`."""

    nodes: Annotated[int, "nodes (default: 1)"] = 1
    gpus: Annotated[int, "GPUs a node, one process each; 0 for CPUs (default: 1)"] = 1
    tasks: Annotated[int, "processes a node without GPUs (default: 1)"] = 1
    cpus: Annotated[int, "cores a process, for threads and loader processes (default: 4)"] = 4
    time: Annotated[str | None, "time limit, 24:00:00; at its end a job is requeued and goes on"] = None
    partition: Annotated[str | None, "the cluster's partition"] = None
    sbatch: Annotated[str, "more options, for sbatch", {"metavar": "OPTIONS"}] = ""

    def __post_init__(self) -> None:
        for name, least in {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1}.items():
            if getattr(self, name) < least:
                raise ClusterError(f"--{name}: must be ≥ {least}, not {getattr(self, name)}")
        if self.time is not None and seconds(self.time) < SHORTEST:
            raise ClusterError(
                f"--time: {self.time} is too short: a run is told to stop {NOTICE} s before the limit; "
                f"give it {SHORTEST // 60} minutes or more"
            )
        try:
            shlex.split(self.sbatch)
        except ValueError as error:
            raise ConfigError(f"--sbatch={self.sbatch}: cannot be read: {error}") from error

    @property
    def devices(self) -> int:
        """Processes a node."""
        return self.gpus or self.tasks

    @property
    def settings(self) -> dict[str, str]:
        """What the allocation settles of an experiment."""
        return {
            "trainer.devices": str(self.devices),
            "trainer.nodes": str(self.nodes),
            "trainer.accelerator": "gpu" if self.gpus else "cpu",
        }


def seconds(time: str) -> int:
    """Seconds of a time limit in one of Slurm's forms: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = _TIME.fullmatch(time)
    if match is None:
        raise ClusterError(f"--time: {time!r} is no time limit; write it as 24:00:00 or 2-00:00:00")
    a, b, c = (int(match[part] or 0) for part in "abc")
    if match["d"]:
        return ((int(match["d"]) * 24 + a) * 60 + b) * 60 + c
    return (a * 60 + b) * 60 + c if match["c"] else a * 60 + b


@dataclass(frozen=True)
class Entry:
    """A run: its folder and its settings."""

    folder: Path
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run, or a sweep of them as a job array."""

    name: str
    experiment: str
    entries: tuple[Entry, ...]
    sweep: bool
    folder: Path
    """Where the script is kept and the logs are; of a single run its own."""
    resources: Resources
    project: Path = field(default_factory=Path.cwd)
    """Where the script was submitted, and runs."""
    python: Path = Path(sys.executable)
    """The environment's interpreter."""


def render(job: Job) -> str:
    """A job's batch script; a ClusterError names what cannot stand in one."""
    asked = job.resources
    words = [job.name, job.experiment, str(job.project), str(job.python), asked.partition or "", asked.sbatch]
    words += [word for entry in job.entries for word in (str(entry.folder), *entry.settings)]
    if any(ord(sign) < 32 for word in words for sign in word):
        raise ClusterError(f"{job.name}: a setting, a name or a folder holds a line break or a control sign")
    parts = {
        "directives": "\n".join(f"#SBATCH {shlex.quote(option)}" for option in _directives(job)),
        "project": shlex.quote(str(job.project)),
        "python": shlex.quote(str(job.python)),
        "experiment": shlex.quote(job.experiment),
        "notice": str(NOTICE),
        "accelerator": asked.settings["trainer.accelerator"],
        "run": (_NEEDED if environment(job) else "") + _run(job),
    }
    template = Path(__file__).with_name("job.sh").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda found: parts[found[1]], template)


def environment(job: Job) -> dict[str, str]:
    """Variables that sbatch hands on, because the script in the run's folder must not hold them."""
    places = {setting for entry in job.entries for setting in entry.settings if _is_secret(setting)}
    if len(places) > 1:
        raise ClusterError(f"{job.name}: runs of one job can have one data.path with credentials only")
    return {PLACE: places.pop().removeprefix(SECRET)} if places else {}


def _directives(job: Job) -> list[str]:
    asked = job.resources
    # Lightning takes jobs of these names for a terminal's.
    name = f"{job.name}-run" if job.name in ("bash", "interactive") else job.name
    # In a folder's own name a per cent sign is no placeholder.
    folder = str(job.project / job.folder).replace("%", "%%")
    return [
        f"--job-name={name}",
        f"--nodes={asked.nodes}",
        f"--ntasks-per-node={asked.devices}",
        f"--cpus-per-task={asked.cpus}",
        *([f"--gpus-per-node={asked.gpus}"] if asked.gpus else []),
        *([f"--time={asked.time}"] if asked.time else []),
        *([f"--partition={asked.partition}"] if asked.partition else []),
        *([f"--array=0-{len(job.entries) - 1}"] if job.sweep else []),
        f"--output={folder}/{'slurm-%A_%a.out' if job.sweep else 'slurm-%j.out'}",
        "--open-mode=append",
        "--requeue",
        f"--signal=USR1@{NOTICE}",
        *shlex.split(asked.sbatch),
    ]


def _run(job: Job) -> str:
    """The lines that settle which run it is and how it is set."""
    if not job.sweep:
        return _entry(job.entries[0])
    cases = "".join(f"{number})\n{_entry(entry, '    ')}    ;;\n" for number, entry in enumerate(job.entries))
    log = "slurm-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.out"
    return (
        f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}'
        '*) echo "there is no run $SLURM_ARRAY_TASK_ID in this sweep" >&2; exit 2 ;;\nesac\n'
        f'ln -sfn "../{log}" "$DUALSCORE_RUN/{log}"  # the log, beside the run that it is of\n'
    )


def _entry(entry: Entry, indent: str = "") -> str:
    settings = " ".join(
        # A place with a password or a command comes from the job's environment.
        f'"{SECRET}${PLACE}"' if _is_secret(setting) else shlex.quote(setting)
        for setting in entry.settings
    )
    return f"{indent}export DUALSCORE_RUN={shlex.quote(str(entry.folder))}\n{indent}settings=({settings})\n"


def _is_secret(setting: str) -> bool:
    return setting.startswith(SECRET) and redact(setting) != setting
