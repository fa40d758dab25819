"""Run folders: where a run lives, what it was started with, and whether it may go on.

runs/NAME, runs/NAME-2, … each hold `config.yaml`, `checkpoints/last.ckpt` and `best.ckpt`, TensorBoard's
`events.*` and `evaluation.json`. The newest of a name is the one that goes on.
"""

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import yaml

from dualscore.errors import CheckpointError, ConfigError, TrainingError, did_you_mean
from dualscore.files.aside import write_aside
from dualscore.files.plain_text import NO_TEXT, is_text, one_line, refuse_surprises
from dualscore.settings.experiment import to_config, to_plain
from dualscore.shipped import places

RUNS = Path("runs")
LOCK = ".lock"
FREE_KEYS = re.compile(r"(trainer|evaluate)\..*|data\.(path|cache|cache_gb|max_skipped)")
"""Settings that may change when a run goes on."""
ARCHITECTURE_KEYS = re.compile(
    r"model|(network|energy)\..*|data\.(channels|size)|noise\.t_(min|max)|optim\.ema_steps"
)
"""Settings that decide which weights fit and what they mean."""
NAMED = 8
"""Runs that a message about a missing one names."""


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with the old and the new value."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def older(checkpoint: Path, age: int) -> Path:
    """Where a checkpoint is kept after `age` later ones of its name were written; itself for 0."""
    return checkpoint.with_stem(f"{checkpoint.stem}-{age}") if age else checkpoint


def completed(plain: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the settings that did not exist then, at the values they had in effect."""
    return to_plain(to_config(plain))


def check_architecture(path: Path, trained: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a checkpoint whose configuration is of another architecture than the experiment's."""
    try:
        changed = differences(completed(trained), wanted)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: its configuration does not belong to this version: {error}"
        ) from error
    what = [f"{k}={v[0]} (here {v[1]})" for k, v in changed.items() if ARCHITECTURE_KEYS.fullmatch(k)]
    if what:
        raise CheckpointError(
            f"{path}: a checkpoint of another architecture: it was trained with {', '.join(what)}; "
            "name the experiment it belongs to, or repeat its settings"
        )


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that a run goes on from."""
        return self.checkpoints / "last.ckpt"

    def kept(self) -> list[Path]:
        """The checkpoints that a run can go on from, the newest first."""
        found = {p: re.fullmatch(r"last(?:-(\d+))?", p.stem) for p in self.checkpoints.glob("last*.ckpt")}
        ages = {int(match[1] or 0): path for path, match in found.items() if match}
        return [ages[age] for age in sorted(ages)]

    def goes_on(self) -> str:
        """What the command that was stopped does when it is given again, in words."""
        if self.kept():
            return "the same command goes on from the last checkpoint"
        return "no checkpoint was written yet: the same command begins at step 0"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation figure."""
        return self.checkpoints / "best.ckpt"

    @property
    def config_file(self) -> Path:
        """The configuration the run was started with."""
        return self.folder / "config.yaml"

    def read_config(self) -> dict[str, Any]:
        """The configuration the run was started with, as plain values; a ConfigError if it has none."""
        try:
            text = self.config_file.read_text(encoding="utf-8")
            refuse_surprises(text)
            content = yaml.safe_load(text)
        except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            wrong = f"cannot be read ({one_line(error)})"
            raise ConfigError(f"{self.config_file}: {wrong}; start anew with --fresh") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{self.config_file}: holds no keys; start anew with --fresh")
        return content

    def check_same(self, config: dict[str, Any]) -> str:
        """Refuse other settings than the run was started with; otherwise say in a word what they are."""
        if not self.kept():
            return "valid"  # nothing was trained with the old settings
        changed = differences(completed(self.read_config()), config)
        what = [f"{k}={v[0]} (now {v[1]})" for k, v in changed.items() if not FREE_KEYS.fullmatch(k)]
        if what:
            raise ConfigError(
                f"{self.config_file}: the run was started with {', '.join(what)}; repeat them, or start a "
                "new run beside it with --fresh"
            )
        return "valid, and those of the run so far"

    def check_free(self) -> str:
        """Refuse a run that another process trains in; otherwise say that it is free."""
        path = self.folder / LOCK
        if path.exists():
            with path.open("r+") as file:
                self._lock(file)
        return "no other process trains there"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training in the folder, until this one ends, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):  # nobody trains there, but what is complete can be told
            yield
            return
        with (self.folder / LOCK).open("a+") as file:
            if self._lock(file):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield

    def _lock(self, file: TextIO) -> bool:
        """Lock the file; False on a file system without locks, where nothing keeps others out."""
        try:
            # Of the process, not the file: loader processes that outlive it for a moment hold nothing.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP):  # two on a Mac
                return False
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            raise TrainingError(
                f"{self.folder}: {file.read().strip() or 'another process'} trains there; wait for it, "
                f"or start a new run beside it with --fresh"
            ) from None
        return True

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the configuration, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_aside(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())


def _numbered(name: str, root: Path) -> tuple[int, Path]:
    """The newest run of a name with its number; 0 and the first's folder where there is none.

    Names are as `fresh_run` gives them: NAME-1 and NAME-02 are names that somebody chose.
    """
    if Path(name).is_absolute() or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ConfigError(f"--name {name}: must be the name of a folder below runs")
    first = root / name
    if not is_text(str(first)):
        raise ConfigError(f"{first}: {NO_TEXT}")
    pattern = re.compile(rf"{re.escape(first.name)}(?:-([2-9]|[1-9]\d+))?")
    matches = [(pattern.fullmatch(path.name), path) for path in first.parent.glob("*")]
    found = sorted(((int(match[1] or 1), path) for match, path in matches if match), reverse=True)
    return next(((n, path) for n, path in found if n == 1 or not _has_own_name(Run(path))), (0, first))


def _has_own_name(run: Run) -> bool:
    """Whether a run's folder is named after its experiment, which may end like a number: `unet-64`."""
    try:
        return run.read_config().get("name") == run.folder.name
    except ConfigError:  # none yet, or damaged: nothing says that it is another's
        return False


def newest_run(name: str, root: Path = RUNS) -> Run:
    """The newest run of a name: NAME, NAME-2, …, but not that of an experiment itself called NAME-3."""
    return Run(_numbered(name, root)[1])


def fresh_run(name: str, root: Path = RUNS) -> Run:
    """A folder that does not exist yet: NAME, or the first of NAME-2, NAME-3, … after the newest run's."""
    numbers = count(_numbered(name, root)[0] + 1)
    folders = (root / (f"{name}-{number}" if number > 1 else name) for number in numbers)
    return Run(next(folder for folder in folders if not folder.exists()))


def runs_below(root: Path = RUNS) -> list[str]:
    """Paths of runs with a checkpoint below a folder, sweeps' included, the latest first."""
    found = [*root.glob("*/checkpoints/*.ckpt"), *root.glob("*/*/checkpoints/*.ckpt")]
    found.sort(key=lambda path: -path.stat().st_mtime)
    return list(dict.fromkeys(str(path.parent.parent) for path in found))


def missing_run(path: Path) -> str:
    """The end of a message about a missing run or model: what exists instead."""
    there = runs_below(path.parent if path.parent != Path() else RUNS) or runs_below()
    names = {Path(run).name for run in there}
    is_experiment = any((place / f"{path.name}.yaml").is_file() for place in places("experiments"))
    if is_experiment and path.name not in names:
        return f"{path.name} is not trained yet; dualscore train {path.name} trains it"
    if not there:
        return "there are no runs yet; dualscore train EXPERIMENT trains one"
    more = f" and {len(there) - NAMED} more" if len(there) > NAMED else ""
    return f"{did_you_mean(path.name, names)}there are: {', '.join(there[:NAMED])}{more}"
