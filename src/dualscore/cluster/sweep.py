"""A sweep: every combination of some settings' values, declared in a file, one run each."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualscore.errors import ConfigError
from dualscore.settings.experiment import find, read_yaml

LARGEST = 1000
"""Runs of a sweep: what clusters let a job array have (Slurm's MaxArraySize is 1001 unless set)."""
_KEYS = {"experiment", "settings", "grid"}


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: the name of its folder, and its settings."""

    name: str
    settings: list[str]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file declares it; `grid` names the settings that are varied."""

    name: str
    experiment: str
    grid: list[str]
    combinations: list[Combination]


def load_sweep(name: str, folder: Path | None = None) -> Sweep:
    """Read a sweep. Whether an experiment takes its settings shows when it is loaded with them.

    Args:
        name: the sweep's name, a file `{name}.yaml`.
        folder: where it is; None for the working folder's `sweeps`, then the shipped ones.

    Returns:
        The sweep; the last setting of the grid varies fastest.

    Raises:
        ConfigError: one line that names the file and the key.
    """
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
    combinations = [
        Combination(
            "_".join(_part(str(key), value) for key, value in zip(grid, values, strict=True)),
            [*settings, *(f"{key}={_text(value)}" for key, value in zip(grid, values, strict=True))],
        )
        for values in itertools.product(*grid.values())
    ]
    if len({combination.name for combination in combinations}) < len(combinations):
        raise ConfigError(f"{path}: grid: two combinations would have the same folder; are values repeated?")
    if len(combinations) > LARGEST:
        raise ConfigError(f"{path}: grid: {len(combinations)} combinations; {LARGEST} is the most")
    return Sweep(name, experiment, [str(key) for key in grid], combinations)


def _text(value: Any) -> str:  # noqa: ANN401 - a plain value out of YAML
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _part(key: str, value: Any) -> str:  # noqa: ANN401 - a plain value out of YAML
    """A setting in a folder's name: data.images=10 as images10."""
    return re.sub(r"[^\w.+-]+", "-", key.rpartition(".")[2] + _text(value))
