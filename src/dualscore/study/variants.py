"""What a study compares: variants of one experiment, the paper's recipe always among them."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dualscore.errors import ConfigError
from dualscore.settings.config import ExperimentConfig, ModelKind
from dualscore.settings.experiment import load_experiment
from dualscore.settings.grid import Grid, read_grid, written

STUDIES = Path("studies")
PAPER = "paper"
SIZE_KEYS = {"network.kind", "network.width", "network.scales", "network.layers"}
"""What makes networks equally large: the paper's recipe keeps them."""


@dataclass(frozen=True)
class Variant:
    """One row of a study."""

    name: str
    experiment: str
    overrides: list[str]

    @property
    def slug(self) -> str:
        """The name, fit for a folder."""
        return re.sub(r"[^\w.]+", "-", self.name).strip("-")


@dataclass(frozen=True)
class Study:
    """A study as its file declares it."""

    name: str
    purpose: str
    seeds: list[int]
    seconds: float | None
    """Training time of every run; None where all take the same number of steps."""
    steps: int | None
    measurements: int
    """Validations in a run, evenly spaced, the last at its end."""
    variants: list[Variant]
    """The first is what the others are compared with."""


def paper_settings(config: ExperimentConfig) -> list[str]:
    """The overrides that turn an experiment into the paper's recipe on the same data and network size.

    The schema's defaults are that recipe (Guth et al. 2025, appendix), so every setting of the energy, the
    network beyond its size, noise, objective and optimiser that differs from its default is set back.
    """
    settings = []
    for part in ("energy", "network", "noise", "objective", "optim"):
        mine = getattr(config, part)
        for field in fields(mine):
            key = f"{part}.{field.name}"
            if key not in SIZE_KEYS and getattr(mine, field.name) != field.default:
                settings.append(f"{key}={written(field.default)}")
    return [*settings, "data.dequantize=false"] if config.data.dequantize else settings


def load_study(name: str, folder: Path | None = None, experiments: Path | None = None) -> Study:
    """Read and check a study `{name}.yaml`; the paper's recipe is added as its last variant."""
    grid = read_grid("studies", name, folder, {"seconds", "steps", "seeds", "measurements", "variants"})
    declared = grid.section("variants", "must name at least one variant")
    variants = [_variant(grid, variant, content) for variant, content in declared.items()]
    base = load_experiment(grid.experiment, grid.settings, experiments)
    variants.append(Variant(PAPER, grid.experiment, [*grid.settings, *paper_settings(base)]))
    if ("seconds" in grid.content) == ("steps" in grid.content):
        raise grid.wrong("seconds", "give either seconds or steps")
    timed = "seconds" in grid.content
    study = Study(
        name,
        grid.path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip(),
        _seeds(grid),
        _number(grid, "seconds") if timed else None,
        None if timed else _whole(grid, "steps"),
        _whole(grid, "measurements", 10),
        variants,
    )
    _check(study, grid, experiments)
    return study


def _variant(grid: Grid, name: Any, content: Any) -> Variant:  # noqa: ANN401 - out of YAML
    key, base, settings = f"variants.{name}", grid.experiment, content
    if not isinstance(name, str) or name == PAPER or not re.fullmatch(r"[\w ×(),.+-]{1,60}", name):
        raise grid.wrong(key, f"not a name for a variant ({PAPER!r} is added by itself)")
    if isinstance(content, dict):
        base, settings = content.get("experiment", base), content.get("settings", [])
        if set(content) - {"experiment", "settings"} or not isinstance(base, str):
            raise grid.wrong(key, "takes experiment and settings")
    return Variant(name, base, grid.settings_of(settings, key))


def _number(grid: Grid, key: str, default: float | None = None) -> float:
    value = grid.content.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise grid.wrong(key, f"must be a number > 0, not {value!r}")
    return value


def _whole(grid: Grid, key: str, default: int | None = None) -> int:
    value = _number(grid, key, default)
    if value != int(value):
        raise grid.wrong(key, f"must be a whole number, not {value!r}")
    return int(value)


def _seeds(grid: Grid) -> list[int]:
    seeds = grid.content.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise grid.wrong("seeds", f"must be a list of different numbers ≥ 0, not {seeds!r}")
    return list(seeds)


def _check(study: Study, grid: Grid, experiments: Path | None) -> None:
    """Load every variant, so that a mistake shows before the first run and not after hours."""
    if len({v.slug for v in study.variants}) < len(study.variants):
        raise grid.wrong("variants", "two names differ only in signs that a folder cannot have")
    if study.steps is not None and study.steps % study.measurements:
        raise grid.wrong("steps", f"{study.steps} must be a multiple of {study.measurements} measurements")
    data = set()
    for variant in study.variants:
        key = f"variants.{variant.name}"
        try:
            config = load_experiment(variant.experiment, variant.overrides, experiments)
        except ConfigError as error:
            raise grid.wrong(key, str(error)) from error
        both = {"paper", "bound"} <= set(config.evaluate.estimators)
        if config.model is ModelKind.denoiser or not config.data.quantized or not both:
            raise grid.wrong(
                key,
                "a study compares the bound and the paper's figure: it needs an energy, 8-bit images and "
                "both among evaluate.estimators",
            )
        d = config.data
        data.add(f"{d.path or d.density.value} of {d.channels}×{d.size}×{d.size}")
    if len(data) > 1:
        raise grid.wrong("variants", f"all must have the same data, not {' and '.join(sorted(data))}")
