"""What people run into, as conditions that a campaign (`faults.py`) combines; each prepares a trial."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ON_ALBUM, ON_SHARDS = ("score", "ood", "build"), ("train", "evaluate", "verify")
EVERYWHERE = (*ON_ALBUM, *ON_SHARDS)
SHARES = ("--val-fraction", "0.15", "--test-fraction", "0.15")
LOADERS = ("train", "evaluate", "score", "ood")


@dataclass
class Trial:
    """A command to be typed, what is around it, and what may come of it."""

    number: int
    command: str
    folder: Path
    chance: Random
    duration: float
    """Seconds that the undisturbed command takes."""
    where: str = ""
    """A folder inside, for values that are hard to hand on."""
    environment: dict[str, str] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    """Python to be executed first, in the process itself."""
    words: list[str] = field(default_factory=list)
    """More options and settings."""
    source: list[str] = field(default_factory=lambda: ["folder", "--src", "album", *SHARES])
    """What data are built from."""
    workers: int = 0
    entries: int = 0
    """More pictures, and more of what must be named, than the album has."""
    refusals: list[str] = field(default_factory=list)
    """Patterns of the one line that the command may end with."""
    must_refuse: bool = False
    """Whether success is a fault."""
    said: list[str] = field(default_factory=list)
    """What must be said where the command succeeds."""
    same: bool = True
    """Whether the result must be the undisturbed command's."""
    meanwhile: Callable[["Trial", int], None] | None = None
    ends: set[int] = field(default_factory=set)
    """Further statuses: of a stop."""
    python: bool = False
    """Whether it needs an interpreter of its own."""
    conditions: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        """Where the command is typed."""
        return self.folder / self.where

    @property
    def album(self) -> Path:
        """The pictures, which a condition may spoil."""
        return self.work / "album"

    @property
    def shards(self) -> Path:
        """The data set, which a condition may spoil."""
        return self.work / "shards"

    def may_refuse(self, *patterns: str) -> None:
        """Permit an end of one line with any of these in it."""
        self.refusals += patterns


CONDITIONS: dict[str, tuple[tuple[str, ...], Callable[[Trial], Any]]] = {}


def condition(*commands: str) -> Callable[[Callable[[Trial], Any]], Callable[[Trial], Any]]:
    """Register a condition for the commands that it can meet."""

    def add(function: Callable[[Trial], Any]) -> Callable[[Trial], Any]:
        CONDITIONS[function.__name__] = (commands or EVERYWHERE, function)
        return function

    return add


# The machine.


@condition()
def few_open_files(t: Trial) -> None:
    soft = t.chance.choice((20, 24, 32, 40, 48, 64, 100))
    hard = t.chance.choice((soft, 4096))
    t.before.append(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))")
    if hard == soft:
        t.may_refuse(rf"the limit is {soft}: raise it", "Too many open files", r"ulimit -n")


@condition()
def long_tmpdir(t: Trial) -> None:
    place = t.folder / ("x" * t.chance.choice((90, 120, 200)))
    place.mkdir()
    t.environment["TMPDIR"] = str(place)
    t.may_refuse("TMPDIR")


@condition()
def unwritable_tmpdir(t: Trial) -> None:
    place = t.folder / "closed"
    place.mkdir(mode=0o500)
    t.environment["TMPDIR"] = str(t.chance.choice((place, t.folder / "missing")))


@condition("train", "score", "ood", "build")
def closed_results(t: Trial) -> None:
    (t.work / {"train": "runs", "score": "scores", "ood": "results", "build": "made"}[t.command]).mkdir(
        mode=0o500
    )
    t.may_refuse("Permission denied", "cannot be written")


@condition()
def closed_input(t: Trial) -> None:
    t.before.append("import os, sys; sys.stdin = None; os.close(0)")


@condition()
def confined_cores(t: Trial) -> None:
    t.before.append("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})")


@condition("train", "score", "ood", "build")
def full_disk(t: Trial) -> None:
    most = t.chance.choice((0, 500, 4_000, 30_000))
    t.before.append(
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))"
    )
    t.may_refuse("File too large", "could not be written", "cannot be written")


@condition(*LOADERS)
def forkserver(t: Trial) -> None:
    t.before.append("import multiprocessing; multiprocessing.set_start_method('forkserver', force=True)")


@condition(*LOADERS, "build")
def one_worker(t: Trial) -> None:
    t.workers = 1


@condition(*LOADERS, "build")
def two_workers(t: Trial) -> None:
    t.workers = 2


# Other people's settings, shells and terminals.


@condition()
def launcher_variables(t: Trial) -> None:
    left = {
        "RANK": "013", "LOCAL_RANK": "01", "NODE_RANK": "01", "GROUP_RANK": "02", "WORLD_SIZE": "128",
        "SLURM_NTASKS": "14", "SLURM_JOB_ID": "7", "SLURM_PROCID": "03", "SLURM_LOCALID": "01",
        "SLURM_NODEID": "0", "SLURM_STEP_ID": "0", "MASTER_ADDR": "w", "MASTER_PORT": "2",
        "TORCHELASTIC_RUN_ID": "n", "JSM_NAMESPACE_RANK": "1", "SLURM_CPU_BIND": "q", "PMI_RANK": "1",
        "SLURM_JOB_NAME": "bi", "OMPI_COMM_WORLD_RANK": "1",
    }  # fmt: skip
    words = {"w": "node7", "n": "none", "q": "quiet", "b": "bash", "i": "interactive"}
    for name in t.chance.sample(sorted(left), t.chance.randint(1, 5)):
        value = t.chance.choice(left[name])
        t.environment[name] = words.get(value, value)
        if t.command == "train":
            t.may_refuse(f"{name}=.* is set in the environment")
    if t.command != "train":  # forgets them before it imports Lightning, which a fork has imported
        t.before.append(
            "import sys; loaded = sys.modules.get('lightning.fabric.utilities.rank_zero'); "
            "loaded and setattr(loaded.rank_zero_only, 'rank', 0)"
        )


@condition()
def no_columns(t: Trial) -> None:
    t.environment |= {"COLUMNS": t.chance.choice(("0", "1", "-1", "", "many")), "LINES": "0"}


@condition()
def poor_encoding(t: Trial) -> None:
    encoding = t.chance.choice(("ascii", "latin-1", "cp1252"))
    t.environment |= {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    t.before.append(
        f"import sys; sys.stdout.reconfigure(encoding={encoding!r}, errors='strict'); "
        f"sys.stderr.reconfigure(encoding={encoding!r}, errors='backslashreplace')"
    )


@condition()
def c_locale(t: Trial) -> None:
    t.python = True
    t.environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@condition()
def hostile_matplotlibrc(t: Trial) -> None:
    path = t.folder / "matplotlibrc"
    lines = ("text.usetex: True", "savefig.transparent: True", "font.family: NoSuchFont", "backend: TkAgg")
    path.write_text("\n".join(t.chance.sample(lines, 2)) + "\n")
    t.environment["MATPLOTLIBRC"] = str(path)
    t.before.append(f"import matplotlib; matplotlib.rc_file({str(path)!r})")


@condition()
def no_home(t: Trial) -> None:
    t.environment |= dict.fromkeys(("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"), "/nonexistent")


@condition("train")
def odd_seed(t: Trial) -> None:
    seed = t.chance.choice(("010", "0_1", "1e1", str(2**70), "-3", "0x10"))
    t.words.append(f"seed={seed}")
    t.same = False
    t.may_refuse(f"^error: override 'seed={seed}': ")


@condition("train", "evaluate")
def settings_of_lightning(t: Trial) -> None:
    name = t.chance.choice(
        ("PL_TRAINER_LIMIT_VAL_BATCHES", "PL_TRAINER_MAX_STEPS", "PL_TRAINER_FAST_DEV_RUN")
    )
    t.environment[name] = "1"
    t.must_refuse = True
    t.may_refuse(f"{name}=1.*set in the environment, where Lightning would take settings")


# Values: `where` is chosen before anything is put there.


def hard_folder(chance: Random) -> str:
    """A folder's name that shells, YAML and OmegaConf read something else into."""
    names = ("my  photos", "X #2", "5$ a", "~", "010", "a=b", "ü é", "[x]", "100%", "x: y", "'q\"", "${HOME}")
    return chance.choice(names)


# Signals.


def _after(t: Trial, process: int, action: Callable[[], None]) -> None:
    # A new interpreter's own beginning is left in peace.
    first, seconds = (1.0, t.duration + 5.0) if t.python else (0.1, t.duration)
    deadline = time.monotonic() + first + t.chance.uniform(0.0, 1.1) * seconds
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < deadline and os.waitid(os.P_PID, process, look) is None:
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        action()


def _stop(t: Trial, number: signal.Signals, *statuses: int) -> None:
    send = t.chance.choice((os.kill, os.killpg))
    t.meanwhile = lambda t, process: _after(t, process, lambda: send(process, number))
    t.ends |= {-number, *statuses}


@condition()
def ctrl_c(t: Trial) -> None:
    _stop(t, signal.SIGINT, 130)


@condition()
def sigterm(t: Trial) -> None:
    _stop(t, signal.SIGTERM, 75)


@condition()
def hangup(t: Trial) -> None:
    _stop(t, signal.SIGHUP, 75)


@condition()
def pause(t: Trial) -> None:
    def rest(t: Trial, process: int) -> None:
        _after(t, process, lambda: os.killpg(process, signal.SIGSTOP))
        time.sleep(t.chance.choice((0.5, 4.0 if t.command == "train" else 1.0)))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGCONT)

    t.meanwhile = rest
    if t.command == "train":
        t.words.append("trainer.hang_minutes=0.05")


def _workers(process: int) -> list[str]:
    """Processes that work for one: not Python's own, without which Python itself prints errors."""
    found = []
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"multiprocessing.forkserver" in command:
            found += Path(f"/proc/{child}/task/{child}/children").read_text().split()
        elif b"resource_tracker" not in command:
            found.append(child)
    return found


@condition(*LOADERS, "build")
def killed_worker(t: Trial) -> None:
    def kill(t: Trial, process: int) -> None:
        def one() -> None:
            if workers := _workers(process):
                os.kill(int(t.chance.choice(workers)), signal.SIGKILL)

        with contextlib.suppress(FileNotFoundError):
            _after(t, process, one)

    t.workers = t.workers or 2
    t.meanwhile = kill
    t.may_refuse("a (loader|worker) process died", r"processes cannot be started \(")
