"""Reads experiments: YAML file (one parent at most) + overrides → a checked configuration."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dualscore.config import ExperimentConfig
from dualscore.errors import ConfigError
from dualscore.plain_yaml import refuse_aliases
from dualscore.redaction import redact
from dualscore.rules import problems

EXPERIMENTS = Path("experiments")


def summary(name: str, folder: Path = EXPERIMENTS) -> str:
    """The first line of an experiment's header."""
    return _find(name, folder).read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def available(folder: Path = EXPERIMENTS) -> list[str]:
    """Names of the experiments in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys.

    Args:
        path: the file.

    Returns:
        Its content; keys are text.

    Raises:
        ConfigError: if it is not valid, holds no keys, or one of them twice.
    """
    try:
        refuse_aliases(path.read_text(encoding="utf-8"))
        # OmegaConf's reader, unlike plain YAML, refuses a key that is given twice.
        loaded = OmegaConf.load(path)
        content = OmegaConf.to_container(loaded) if isinstance(loaded, DictConfig) else None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: holds no keys")
    return {str(key): value for key, value in content.items()}


def find_declared(kind: str, name: str, folder: Path) -> Path:
    """The file of a study or a sweep.

    Args:
        kind: what it is called.
        name: its name, a file `{name}.yaml` in `folder`.
        folder: where they are declared.

    Returns:
        The file.

    Raises:
        ConfigError: if there is none, naming those that there are.
    """
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[\w-]{1,100}", name) or not path.is_file():
        there = ", ".join(available(folder)) or "none"
        raise ConfigError(f"{kind} {name!r} does not exist; there are: {there}")
    return path


def _find(name: str, folder: Path) -> Path:
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[\w.-]{1,100}", name) or not path.is_file():
        close = difflib.get_close_matches(name, available(folder), 1)
        hint = f"did you mean {close[0]}? " if close else ""
        there = ", ".join(available(folder)) or f"none (no folder {folder} here?)"
        raise ConfigError(f"experiment {name!r} does not exist; {hint}there are: {there}")
    return path


def _merge(base: DictConfig, content: Any, where: str) -> DictConfig:  # noqa: ANN401 - YAML or dot list
    _refuse_interpolation(content, where)
    try:
        merged = OmegaConf.merge(base, content)
        assert isinstance(merged, DictConfig)
        return merged
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        reason = str(error.msg or error).splitlines()[0]
        if "not in" in reason:
            section, _, leaf = str(key).rpartition(".")
            node = OmegaConf.select(base, section) if section else base
            names = [str(k) for k in node] if isinstance(node, DictConfig) else []
            close = difflib.get_close_matches(leaf, names, 1)
            reason = "unknown key" + (
                f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"
            )
        raise ConfigError(f"{where}: {key}: {reason}") from error


def _refuse_interpolation(content: Any, where: str = "", key: str = "") -> None:  # noqa: ANN401
    """Refuse `${…}`, which would put environment variables, secrets among them, into files and logs."""
    if isinstance(content, DictConfig | ListConfig):
        content = OmegaConf.to_container(content, resolve=False)
    if isinstance(content, str) and "${" in content:
        place = f"{where}: {key}" if where else key
        raise ConfigError(f"{place}: must be a plain value, without ${{…}}")
    parts = enumerate(content) if isinstance(content, list) else ()
    for name, part in content.items() if isinstance(content, dict) else parts:
        _refuse_interpolation(part, where, f"{key}.{name}" if key else str(name))


def load_experiment(
    name: str, overrides: list[str] | None = None, folder: Path = EXPERIMENTS
) -> ExperimentConfig:
    """Read, complete and check an experiment.

    Args:
        name: the experiment's name, a file `{name}.yaml` in `folder`.
        overrides: settings like `optim.lr=1e-4`, which win over the file's.
        folder: where experiments are.

    Returns:
        The configuration, every key present and valid.

    Raises:
        ConfigError: one line that names the file (or the override) and the key.
    """
    path = _find(name, folder)
    content = read_yaml(path)
    parent = content.pop("parent", None)
    config = OmegaConf.structured(ExperimentConfig)
    if parent is not None:
        parent_path = _find(str(parent), folder)
        inherited = read_yaml(parent_path)
        if "parent" in inherited:
            raise ConfigError(f"{path}: parent: {parent} has a parent itself; one level is the limit")
        config = _merge(config, inherited, str(parent_path))
    config = _merge(config, {**content, "name": name}, str(path))
    return _complete(config, overrides or [], str(path))


def override_config(content: dict[str, Any], overrides: list[str], where: str) -> ExperimentConfig:
    """Check a stored configuration with overrides on top; arguments and errors as in `load_experiment`."""
    config = _merge(OmegaConf.structured(ExperimentConfig), content, where)
    return _complete(config, overrides, where)


def _complete(config: DictConfig, overrides: list[str], where: str) -> ExperimentConfig:
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {redact(override)!r}: write it as key=value")
        if override.startswith("name="):
            raise ConfigError(
                f"override {redact(override)!r}: name: is the experiment file's name and cannot be changed"
            )
        try:
            parsed = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(
                f"override {redact(override)!r}: cannot be read: {' '.join(str(error).split())}"
            ) from error
        config = _merge(config, parsed, f"override {redact(override)!r}")
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        typed = None if missing else to_config(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if typed is None:
        raise ConfigError(f"{where}: {missing[0]}: is required")
    for key, reason in problems(typed):
        # The override of the key itself, or of one that the reason compares it with.
        names = {o: o.partition("=")[0] for o in overrides}
        guilty = [o for o in overrides if names[o] == key] or [o for o in overrides if names[o] in reason]
        raise ConfigError(f"{f'override {redact(guilty[-1])!r}' if guilty else where}: {key}: {reason}")
    return typed


def _explain(error: OmegaConfBaseException) -> str:
    """The key and the first line of what OmegaConf has against it."""
    return f"{error.full_key or '?'}: {str(error.msg or error).splitlines()[0]}"


def to_config(content: DictConfig | dict[str, Any]) -> ExperimentConfig:
    """Build the typed configuration from a complete OmegaConf or plain dictionary.

    Args:
        content: every section and key, or those that differ from their defaults.

    Returns:
        The configuration; values are typed, but not checked against each other.

    Raises:
        ConfigError: naming the key that is unknown or of another type.
    """
    _refuse_interpolation(content)
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ExperimentConfig), content))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(typed, ExperimentConfig)
    return typed


def to_plain(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values, fit for files and logs: no credentials."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    plain["data"]["path"] = redact(plain["data"]["path"])  # it goes into run folders, checkpoints and logs
    return {str(k): v for k, v in plain.items()}
