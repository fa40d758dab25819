"""The files of studies and sweeps: an experiment, settings that all runs share, and what each run sets."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from dualscore.errors import ConfigError
from dualscore.settings.experiment import find, read_yaml


@dataclass(frozen=True)
class Grid:
    """A study's or a sweep's file, as far as both are alike."""

    path: Path
    content: dict[str, Any]
    experiment: str
    settings: list[str]
    """Of all runs."""

    def wrong(self, key: str, reason: str) -> ConfigError:
        """The error of a value that cannot be."""
        return ConfigError(f"{self.path}: {key}: {reason}")

    def settings_of(self, value: Any, key: str) -> list[str]:  # noqa: ANN401 - out of YAML
        """The shared settings and those in a value."""
        if not isinstance(value, list) or any(not isinstance(v, str) or "=" not in v for v in value):
            raise self.wrong(key, "must be a list of settings like optim.lr=1e-4")
        return [*self.settings, *value]

    def section(self, key: str, empty: str) -> dict[Any, Any]:
        """A section that must hold something."""
        section = self.content.get(key)
        if not isinstance(section, dict) or not section:
            raise self.wrong(key, empty)
        return section


def read_grid(kind: str, name: str, folder: Path | None, keys: set[str]) -> Grid:
    """Read `NAME.yaml` of studies or sweeps; `keys` are what it may hold beside experiment and settings."""
    path = find(kind, name, folder)
    content = read_yaml(path)
    known = {"experiment", "settings", *keys}
    if unknown := set(content) - known:
        raise ConfigError(f"{path}: {min(unknown)}: unknown key; known: {', '.join(sorted(known))}")
    bare = Grid(path, content, str(content.get("experiment")), [])
    if not isinstance(content.get("experiment"), str):
        raise bare.wrong("experiment", "must be a name")
    shared = bare.settings_of(content.get("settings", []), "settings")
    return Grid(path, content, bare.experiment, shared)


def combinations(grid: Grid, most: int) -> list[dict[str, Any]]:
    """Every combination of the section `grid`, as values by setting; the last setting changes fastest."""
    axes: Mapping[Any, Any] = grid.section("grid", "must name settings and the values that each takes")
    for key, values in axes.items():
        if not isinstance(values, list) or not values or any(isinstance(v, dict | list) for v in values):
            raise grid.wrong(f"grid.{key}", "must be a list of values")
    if (count := math.prod(map(len, axes.values()))) > most:
        raise grid.wrong("grid", f"{count} combinations; {most} is the most")
    return [dict(zip(map(str, axes), values, strict=True)) for values in itertools.product(*axes.values())]


def written(value: Any) -> str:  # noqa: ANN401 - a plain value, or one of an enum
    """A value as it is written in a setting."""
    if isinstance(value, Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
