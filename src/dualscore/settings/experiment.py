"""Reads experiments: YAML file (one parent at most) + overrides → a checked configuration."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dualscore.errors import ConfigError
from dualscore.files.plain_text import one_line
from dualscore.files.plain_yaml import refuse_aliases
from dualscore.redaction import redact
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.rules import problems
from dualscore.settings.suggestions import did_you_mean
from dualscore.shipped import places

_SINGULAR = {"experiments": "experiment", "studies": "study", "sweeps": "sweep"}
_NAME = re.compile(r"\w[\w.-]{0,99}")  # names become folders


def available(folder: Path | None = None, kind: str = "experiments") -> dict[str, Path]:
    """The files of a kind by name, in one folder or in all places; the user's own hide shipped ones."""
    found: dict[str, Path] = {}
    for place in (folder,) if folder else places(kind):
        files = {path.stem: path for path in sorted(place.glob("*.yaml")) if _NAME.fullmatch(path.stem)}
        found = found | {name: path for name, path in files.items() if name not in found}
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys, none of them twice; ConfigError otherwise."""
    try:
        refuse_aliases(path.read_text(encoding="utf-8"))
        # OmegaConf's reader, unlike plain YAML, refuses a key that is given twice.
        loaded = OmegaConf.load(path)
        content = OmegaConf.to_container(loaded) if isinstance(loaded, DictConfig) else None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: holds no keys")
    return {str(key): value for key, value in content.items()}


def find(kind: str, name: str, folder: Path | None = None) -> Path:
    """The file of an experiment, a study or a sweep; ConfigError names those that there are."""
    there = available(folder, kind)
    if name not in there:
        own = name.rpartition("/")[2].removesuffix(".yaml")  # of who gives the file
        hint = (_run_of_that_name(name) if kind == "experiments" else "") or did_you_mean(own, there)
        looked = " and ".join(str(place) for place in ((folder,) if folder else places(kind)))
        raise ConfigError(
            f"{_SINGULAR[kind]} {name!r} does not exist; {hint}there are: {', '.join(there) or 'none'} "
            f"(looked in {looked})"
        )
    return there[name]


def _run_of_that_name(name: str) -> str:
    """A hint for who takes the name of a run for that of an experiment."""
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        return ""
    try:
        of = read_yaml(Path("runs") / name / "config.yaml").get("name")
    except ConfigError:
        return ""
    return f"it is the name of a run of {of}: give {of} --name {name}; "


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
            guess = did_you_mean(leaf, names).strip() or _elsewhere(base, leaf)
            reason = f"unknown key; {guess or 'known: ' + ', '.join(names)}"
        raise ConfigError(f"{where}: {key}: {reason}") from error


def _elsewhere(base: DictConfig, leaf: str) -> str:
    """Where a key is that was looked for in another section: lr is optim.lr."""
    there = [(str(name), base[name]) for name in base if not OmegaConf.is_missing(base, str(name))]
    found = [f"{name}.{leaf}" for name, node in there if isinstance(node, DictConfig) and leaf in node]
    return f"did you mean {' or '.join(found)}?" if found else ""


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
    name: str, overrides: list[str] | None = None, folder: Path | None = None
) -> ExperimentConfig:
    """Read, complete and check an experiment.

    Args:
        name: the experiment's name, a file `{name}.yaml`.
        overrides: settings like `optim.lr=1e-4`, which win over the file's.
        folder: where it and its parent are; None for the working folder's `experiments`, then the
            shipped ones.

    Returns:
        The configuration, every key present and valid.

    Raises:
        ConfigError: one line that names the file (or the override) and the key.
    """
    path = find("experiments", name, folder)
    content = read_yaml(path)
    parent = content.pop("parent", None)
    config = OmegaConf.structured(ExperimentConfig)
    if parent is not None:
        parent_path = find("experiments", str(parent), folder)
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
            raise ConfigError(f"override {redact(override)!r}: cannot be read: {one_line(error)}") from error
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
    """The typed configuration of a dictionary; values are typed, but not checked against each other."""
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
