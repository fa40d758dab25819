"""The batch script of a job, as a pure function of what it should run and on what."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dualscore.errors import ClusterError
from dualscore.redaction import redact

NOTICE = 90
"""Seconds before the time limit at which a run is told to stop."""
SHORTEST = 300
"""Seconds that a job must be given, so that it gets anywhere before that."""
JOB_FILE = "slurm-job"
"""File in a run's folder that holds the id of the job that it was last given to."""

_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")

SECRET, PLACE = "data.path=", "DUALSCORE_DATA_PATH"
"""The setting that may hold credentials, and the variable that a job then has its value from."""
_NEEDED = f': "${{{PLACE}:?holds the place of the data with its credentials, which this script does not}}"\n'

_BODY = r"""
# With a command of its own for both signals the script outlives the tasks that they stop.
trap : TERM USR1

id="$SLURM_JOB_ID"
# The plain id of a task would, for one task of an array, mean the whole array.
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] && id="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
echo "job $id starts on $SLURM_JOB_NODELIST in $DUALSCORE_RUN, restart ${SLURM_RESTART_COUNT:-0}, $(date)"

export DUALSCORE_STOP_FILE="$DUALSCORE_RUN/.stopped"
rm -f "$DUALSCORE_STOP_FILE"
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK" PYTHONUNBUFFERED=1
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    "$python" -m dualscore.task train "$experiment" "${settings[@]}" \
    trainer.devices="$SLURM_NTASKS_PER_NODE" trainer.nodes="$SLURM_JOB_NUM_NODES" \
    trainer.accelerator="$accelerator"
status=$?

if [ ! -e "$DUALSCORE_STOP_FILE" ]; then
    [ "$status" = 0 ] || echo "job $id failed with status $status; what went wrong stands above" >&2
    exit "$status"
fi
# The tasks left because they were told to. scancel tells them too, and then nothing may bring the job back.
case "$(squeue --noheader --jobs="$id" --format=%T)" in
COMPLETING | CANCELLED)
    echo "job $id was ended from outside; submitted again it goes on"
    exit "$status"
    ;;
esac
echo "job $id is requeued and goes on in $DUALSCORE_RUN, $(date)"
scontrol requeue "$id"
"""


@dataclass(frozen=True)
class Resources:
    """What a job asks the cluster for."""

    nodes: int
    gpus: int
    """A node, one process each; 0 for a job on CPUs."""
    tasks: int
    """Processes a node where there are no GPUs."""
    cpus: int
    """Cores a process: threads and loader processes."""
    time: str | None = None
    partition: str | None = None
    extra: tuple[str, ...] = ()
    """Further options of sbatch."""

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks", "cpus"):
            if getattr(self, name) < 1:
                raise ClusterError(f"--{name}: must be ≥ 1, not {getattr(self, name)}")
        if self.gpus < 0:
            raise ClusterError(f"--gpus: must be ≥ 0, not {self.gpus}")
        if self.time is not None and seconds(self.time) < SHORTEST:
            raise ClusterError(
                f"--time: {self.time} is too short: a run is told to stop {NOTICE} s before the limit; "
                f"give it {SHORTEST // 60} minutes or more"
            )

    @property
    def devices(self) -> int:
        """Processes a node."""
        return self.gpus or self.tasks

    @property
    def accelerator(self) -> str:
        """What the processes run on."""
        return "gpu" if self.gpus else "cpu"

    @property
    def settings(self) -> list[str]:
        """What the allocation settles of an experiment."""
        return [
            f"trainer.devices={self.devices}",
            f"trainer.nodes={self.nodes}",
            f"trainer.accelerator={self.accelerator}",
        ]


def seconds(time: str) -> int:
    """Seconds of a time limit in one of Slurm's forms: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = _TIME.fullmatch(time)
    if match is None:
        raise ClusterError(f"--time: {time!r} is no time limit; write it as 24:00:00 or 2-00:00:00")
    a, b, c = (int(match[part]) if match[part] else 0 for part in "abc")
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
    project: Path
    """Where the script was submitted, and runs."""
    python: Path
    """The environment's interpreter."""
    resources: Resources

    @property
    def script(self) -> Path:
        """Where the script is kept."""
        return self.folder / "job.sh"


def _directives(job: Job) -> list[str]:
    asked = job.resources
    # Lightning takes jobs of these names for a terminal's.
    name = f"{job.name}-run" if job.name in ("bash", "interactive") else job.name
    pattern = "slurm-%A_%a.out" if job.sweep else "slurm-%j.out"
    # In a folder's own name a per cent sign is no placeholder.
    log = str(job.project / job.folder).replace("%", "%%") + f"/{pattern}"
    options = [
        f"--job-name={name}",
        f"--nodes={asked.nodes}",
        f"--ntasks-per-node={asked.devices}",
        f"--cpus-per-task={asked.cpus}",
        *([f"--gpus-per-node={asked.gpus}"] if asked.gpus else []),
        *([f"--time={asked.time}"] if asked.time else []),
        *([f"--partition={asked.partition}"] if asked.partition else []),
        *([f"--array=0-{len(job.entries) - 1}"] if job.sweep else []),
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=USR1@{NOTICE}",
        *asked.extra,
    ]
    return [f"#SBATCH {shlex.quote(option)}" for option in options]


def _setting(setting: str) -> str:
    """A setting in the script; a place with a password or a command comes from the job's environment."""
    return f'"{SECRET}${PLACE}"' if _is_secret(setting) else shlex.quote(setting)


def _is_secret(setting: str) -> bool:
    return setting.startswith(SECRET) and redact(setting) != setting


def environment(job: Job) -> dict[str, str]:
    """Variables that sbatch hands on, because the script in the run's folder must not hold them."""
    places = {setting for entry in job.entries for setting in entry.settings if _is_secret(setting)}
    if len(places) > 1:
        raise ClusterError(f"{job.name}: runs of one job can have one data.path with credentials only")
    return {PLACE: places.pop().removeprefix(SECRET)} if places else {}


def _entry(entry: Entry, indent: str = "") -> str:
    settings = " ".join(map(_setting, entry.settings))
    return f"{indent}export DUALSCORE_RUN={shlex.quote(str(entry.folder))}\n{indent}settings=({settings})\n"


def _choice(job: Job) -> str:
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


def render(job: Job) -> str:
    """A job's batch script; a ClusterError names what cannot stand in one."""
    head = "\n".join(_directives(job))
    script = (
        f"#!/bin/bash\n{head}\n"
        "# Of --signal: the tasks, not this script, are told before the time limit. They save after their\n"
        "# step, and the end of this script requeues the job.\n\n"
        f"cd {shlex.quote(str(job.project))} || exit 1\n"
        f"python={shlex.quote(str(job.python))}\n"
        f"experiment={shlex.quote(job.experiment)}\n"
        f"accelerator={job.resources.accelerator}\n"
        f"{_NEEDED if environment(job) else ''}{_choice(job)}{_BODY}"
    )
    words = [job.name, job.experiment, str(job.project), str(job.python), *job.resources.extra]
    words += [word for entry in job.entries for word in (str(entry.folder), *entry.settings)]
    words.append(job.resources.partition or "")
    if any(ord(sign) < 32 and sign != "\n" for sign in script) or any("\n" in word for word in words):
        raise ClusterError(f"{job.name}: a setting, a name or a folder holds a line break or a control sign")
    return script
