"""What a study compares: variants of one experiment, the paper's recipe always among them."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dualscore.errors import ConfigError
from dualscore.runs.folder import differences, flatten
from dualscore.settings.config import (
    EnergyConfig,
    ExperimentConfig,
    ModelKind,
    NetworkConfig,
    NoiseConfig,
    ObjectiveConfig,
    OptimConfig,
)
from dualscore.settings.experiment import find, load_experiment, read_yaml, to_plain

STUDIES = Path("studies")
PAPER = "paper"
SIZE_KEYS = {"network.kind", "network.width", "network.scales", "network.layers"}
"""What makes networks equally large: the paper's recipe keeps them."""

_KEYS = {"experiment", "seconds", "steps", "seeds", "measurements", "settings", "variants"}


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
    default = to_plain(
        ExperimentConfig(
            name=config.name,
            network=NetworkConfig(
                **{f.name: getattr(config.network, f.name) for f in fields(NetworkConfig)
                   if f"network.{f.name}" in SIZE_KEYS}
            ),
            energy=EnergyConfig(),
            noise=NoiseConfig(),
            objective=ObjectiveConfig(),
            optim=OptimConfig(),
        )
    )  # fmt: skip
    parts = ("energy", "network", "noise", "objective", "optim")
    changed = differences(
        {part: default[part] for part in parts}, {part: to_plain(config)[part] for part in parts}
    )
    settings = [f"{key}={_written(value)}" for key, (value, _) in changed.items()]
    return [*settings, "data.dequantize=false"] if config.data.dequantize else settings


def _written(value: Any) -> str:  # noqa: ANN401 - any plain value
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_study(name: str, folder: Path | None = None, experiments: Path | None = None) -> Study:
    """Read and check a study `{name}.yaml`; the paper's recipe is added as its last variant."""
    path = find("studies", name, folder)
    content = read_yaml(path)
    if unknown := set(content) - _KEYS:
        raise ConfigError(f"{path}: {min(unknown)}: unknown key; known: {', '.join(sorted(_KEYS))}")
    read = _Reader(path, content)
    experiment = read.text("experiment")
    common = read.settings(content.get("settings", []), "settings")
    variants = read.variants(experiment, common)
    base = load_experiment(experiment, common, experiments)
    variants.append(Variant(PAPER, experiment, [*common, *paper_settings(base)]))
    study = Study(
        name,
        path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip(),
        read.seeds(),
        *read.budget(),
        read.whole("measurements", 10),
        variants,
    )
    _check(study, path, experiments)
    return study


class _Reader:
    """Reads values of a study's file, with errors that name the key."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def error(self, key: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: {reason}")

    def text(self, key: str) -> str:
        value = self.content.get(key)
        if not isinstance(value, str):
            raise self.error(key, "must be a name")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self.error(key, f"must be a number > 0, not {value!r}")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value):
            raise self.error(key, f"must be a whole number, not {value!r}")
        return int(value)

    def seeds(self) -> list[int]:
        seeds = self.content.get("seeds", [0])
        if (
            not isinstance(seeds, list)
            or not seeds
            or any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in seeds)
            or len(set(seeds)) < len(seeds)
        ):
            raise self.error("seeds", f"must be a list of different numbers ≥ 0, not {seeds!r}")
        return seeds

    def budget(self) -> tuple[float | None, int | None]:
        if ("seconds" in self.content) == ("steps" in self.content):
            raise self.error("seconds", "give either seconds or steps")
        if "seconds" in self.content:
            return self.number("seconds"), None
        return None, self.whole("steps")

    def settings(self, value: Any, key: str) -> list[str]:  # noqa: ANN401 - out of YAML
        if not isinstance(value, list) or any(not isinstance(v, str) or "=" not in v for v in value):
            raise self.error(key, "must be a list of settings like optim.lr=1e-4")
        return value

    def variants(self, experiment: str, common: list[str]) -> list[Variant]:
        declared = self.content.get("variants")
        if not isinstance(declared, dict) or not declared:
            raise self.error("variants", "must name at least one variant")
        found = []
        for name, content in declared.items():
            key = f"variants.{name}"
            if not isinstance(name, str) or name == PAPER or not re.fullmatch(r"[\w ×(),.+-]{1,60}", name):
                raise self.error(key, f"not a name for a variant ({PAPER!r} is added by itself)")
            base, settings = experiment, content
            if isinstance(content, dict):
                base, settings = content.get("experiment", experiment), content.get("settings", [])
                if set(content) - {"experiment", "settings"} or not isinstance(base, str):
                    raise self.error(key, "takes experiment and settings")
            found.append(Variant(name, base, [*common, *self.settings(settings, key)]))
        return found


def _check(study: Study, path: Path, experiments: Path | None) -> None:
    """Load every variant, so that a mistake shows before the first run and not after hours."""
    if len({v.slug for v in study.variants}) < len(study.variants):
        raise ConfigError(f"{path}: variants: two names differ only in signs that a folder cannot have")
    if study.steps is not None and study.steps % study.measurements:
        raise ConfigError(
            f"{path}: steps: {study.steps} must be a multiple of {study.measurements} measurements"
        )
    data = set()
    for variant in study.variants:
        try:
            config = load_experiment(variant.experiment, variant.overrides, experiments)
        except ConfigError as error:
            raise ConfigError(f"{path}: variants.{variant.name}: {error}") from error
        figures = {"paper", "bound"} <= set(config.evaluate.estimators)
        if config.model is ModelKind.denoiser or not config.data.quantized or not figures:
            raise ConfigError(
                f"{path}: variants.{variant.name}: a study compares the bound and the paper's figure: "
                "it needs an energy, 8-bit images and both among evaluate.estimators"
            )
        flat = flatten(to_plain(config))
        data.add(tuple(flat[f"data.{key}"] for key in ("density", "path", "size", "channels")))
    if len(data) > 1:
        raise ConfigError(f"{path}: variants: all must have the same data, not {sorted(map(str, data))}")
