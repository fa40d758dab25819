"""Reads experiments: YAML file (one parent at most) + overrides → a checked configuration."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dualscore.errors import ConfigError, did_you_mean
from dualscore.files.plain_text import one_line, refuse_surprises
from dualscore.redaction import redact
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.rules import problems
from dualscore.shipped import places

_SINGULAR = {"experiments": "experiment", "studies": "study", "sweeps": "sweep"}
_NAME = re.compile(r"\w[\w.-]{0,99}")  # names become folders


def available(folder: Path | None = None, kind: str = "experiments") -> dict[str, Path]:
    """The files of a kind by name, in one folder or in all places; the user's own hide shipped ones."""
    found: dict[str, Path] = {}
    for place in (folder,) if folder else places(kind):
        for path in sorted(place.glob("*.yaml")):
            if _NAME.fullmatch(path.stem):
                found.setdefault(path.stem, path)
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys, none of them twice; ConfigError otherwise."""
    try:
        refuse_surprises(path.read_text(encoding="utf-8"))
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
        looked = " and ".join(map(str, (folder,) if folder else places(kind)))
        raise ConfigError(
            f"{_SINGULAR[kind]} {name!r} does not exist; {hint}there are: {', '.join(there) or 'none'} "
            f"(looked in {looked})"
        )
    return there[name]


def _run_of_that_name(name: str) -> str:
    """A hint for who takes the name of a run for that of an experiment."""
    if not _NAME.fullmatch(name):
        return ""
    try:
        of = read_yaml(Path("runs") / name / "config.yaml").get("name")
    except ConfigError:
        return ""
    return f"it is the name of a run of {of}: give {of} --name {name}; "


def _layers(path: Path, folder: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    """What an experiment's file says, after what its parent's does."""
    content = read_yaml(path)
    parent = content.pop("parent", None)
    own = (path, {**content, "name": path.stem})
    if parent is None:
        return [own]
    parent_path = find("experiments", str(parent), folder)
    inherited = read_yaml(parent_path)
    if "parent" in inherited:
        raise ConfigError(f"{path}: parent: {parent} has a parent itself; one level is the limit")
    return [(parent_path, inherited), own]


def _sizes(layers: list[tuple[Path, dict[str, Any]]]) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """The sizes of an experiment, its own or else its parent's, and the file they are in, each looked at."""
    for where, content in reversed(layers):
        if (sizes := content.get("sizes")) is None:
            continue
        if not isinstance(sizes, dict):
            raise ConfigError(f"{where}: sizes: must be names, each with settings below it")
        found = {str(name): settings or {} for name, settings in sizes.items()}
        for name, settings in found.items():
            if not isinstance(settings, dict) or "name" in settings or "sizes" in settings:
                raise ConfigError(f"{where}: sizes: {name}: must hold settings, as an experiment does")
            _merge(OmegaConf.structured(ExperimentConfig), settings, f"{where}: sizes: {name}")
        return found, where
    return {}, None


def load_experiment(name: str, overrides: Sequence[str] = (), folder: Path | None = None) -> ExperimentConfig:
    """Read, complete and check an experiment.

    Args:
        name: the experiment's name, a file `{name}.yaml`.
        overrides: settings like `optim.lr=1e-4`, which win over the file's; `size=NAME` takes those that the
            file has under `sizes`.
        folder: where it and its parent are; None for the working folder's `experiments`, then the
            shipped ones.

    Returns:
        The configuration, every key present and valid.

    Raises:
        ConfigError: one line that names the file (or the override) and the key.
    """
    path = find("experiments", name, folder)
    config = OmegaConf.structured(ExperimentConfig)
    layers, wanted = _layers(path, folder), [o for o in overrides if o.startswith("size=")]
    if len(wanted) > 1:
        raise ConfigError(f"size is given {len(wanted)} times ({', '.join(wanted):.200}): give it once")
    sizes, owner = _sizes(layers)
    size = wanted[0].partition("=")[2] if wanted else None
    if size is not None and size not in sizes:
        known = f"there are: {', '.join(sizes)}" if sizes else "it has none; the images' side is data.size"
        raise ConfigError(f"{path}: size={size:.80} is no size of this experiment; {known}")
    for where, content in layers:
        config = _merge(config, {key: v for key, v in content.items() if key != "sizes"}, str(where))
        if size is not None and where == owner:  # what a child says itself comes after it
            config = _merge(config, sizes[size], f"{where}: sizes: {size}")
    return _complete(config, [o for o in overrides if o not in wanted], str(path))


def override_config(content: dict[str, Any], overrides: Sequence[str], where: str) -> ExperimentConfig:
    """Check a stored configuration with overrides on top; arguments and errors as in `load_experiment`."""
    if sizes := [override for override in overrides if override.startswith("size=")]:
        raise ConfigError(f"override {sizes[0]!r}: a run keeps the size it was trained with: leave it out")
    return _complete(_merge(OmegaConf.structured(ExperimentConfig), content, where), overrides, where)


def _merge(base: DictConfig, content: Any, where: str) -> DictConfig:  # noqa: ANN401 - YAML or dot list
    _refuse_surprises(content, where)
    try:
        merged = OmegaConf.merge(base, content)
        assert isinstance(merged, DictConfig)
        return merged
    except OverflowError as error:
        raise ConfigError(f"{where}: a number is too large") from error
    except OmegaConfBaseException as error:
        key, reason = _explain(error)
        if "not in" in reason:
            section, _, leaf = key.rpartition(".")
            node = OmegaConf.select(base, section) if section else base
            names = [str(k) for k in node] if isinstance(node, DictConfig) else []
            guess = did_you_mean(leaf, names).strip() or _elsewhere(base, leaf)
            reason = f"unknown key; {guess or 'known: ' + ', '.join(names)}"
        raise ConfigError(f"{where}: {key}: {reason}") from error


def _kind(key: str) -> Any:  # noqa: ANN401 - a type
    """The type that a key is declared with; None if there is no such key."""
    kind: Any = ExperimentConfig
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return kind


def _parse(override: str) -> Any:  # noqa: ANN401 - as OmegaConf takes it
    """A setting `key=value`, whose value is YAML, or a text as it is written."""
    key, _, value = override.partition("=")
    if _kind(key) is str and not re.fullmatch(r"""(['"]).*\1""", value, re.DOTALL):
        content: Any = value
        for name in reversed(key.split(".")):
            content = {name: content}
        return content
    if re.search(r"(^|\s)#", value):
        raise ValueError("YAML ends at #; leave out what follows")
    refuse_surprises(value)
    return OmegaConf.from_dotlist([override])


def _explain(error: OmegaConfBaseException) -> tuple[str, str]:
    """The key and the first line of what OmegaConf has against it."""
    return str(getattr(error, "full_key", None) or "?"), str(error.msg or error).splitlines()[0]


def _elsewhere(base: DictConfig, leaf: str) -> str:
    """Where a key is that was looked for in another section: lr is optim.lr."""
    there = [(str(name), base[name]) for name in base if not OmegaConf.is_missing(base, str(name))]
    found = [f"{name}.{leaf}" for name, node in there if isinstance(node, DictConfig) and leaf in node]
    return f"did you mean {' or '.join(found)}?" if found else ""


def _refuse_surprises(content: Any, where: str = "", key: str = "") -> None:  # noqa: ANN401
    """Refuse `${…}`, which would put environment variables, secrets among them, into files and logs.

    And what YAML takes for a number, or for yes or no, where a text belongs: 1e3 would become 1000.0; and
    `???`, which would leave what was before.
    """
    said = f"{where}{': ' if where else ''}{key}"
    if isinstance(content, DictConfig | ListConfig):
        content = OmegaConf.to_container(content, resolve=False)
    if isinstance(content, str) and "${" in content:
        raise ConfigError(f"{said}: must be a plain value, without ${{…}}")
    if content == "???":
        raise ConfigError(f"{said}: ??? is no value; give one, or leave the setting out")
    if isinstance(content, int | float) and _kind(key) is str:
        raise ConfigError(f"{said}: is a text: put it in quotes")
    parts = enumerate(content) if isinstance(content, list) else ()
    for name, part in content.items() if isinstance(content, dict) else parts:
        _refuse_surprises(part, where, f"{key}.{name}" if key else str(name))


def _complete(config: DictConfig, overrides: Sequence[str], where: str) -> ExperimentConfig:
    """Put overrides on top, and check that all is there and goes together."""
    for override in overrides:
        said = f"override {redact(override)!r}"
        if "=" not in override:
            raise ConfigError(f"{said}: write it as key=value")
        if override.startswith("name="):
            raise ConfigError(f"{said}: name: is the experiment file's name and cannot be changed")
        try:
            parsed = _parse(override)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{said}: cannot be read: {one_line(error)}") from error
        config = _merge(config, parsed, said)
    try:
        if missing := OmegaConf.missing_keys(config):
            raise ConfigError(f"{min(missing)}: is required")
        typed = to_config(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for key, reason in problems(typed):
        # The override of the key itself, or of one that the reason compares it with.
        names = {o: o.partition("=")[0] for o in overrides}
        guilty = [o for o in overrides if names[o] == key] or [o for o in overrides if names[o] in reason]
        raise ConfigError(f"{f'override {redact(guilty[-1])!r}' if guilty else where}: {key}: {reason}")
    return typed


def to_config(content: DictConfig | dict[str, Any]) -> ExperimentConfig:
    """The typed configuration of a dictionary; values are typed, but not checked against each other."""
    _refuse_surprises(content)
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ExperimentConfig), content))
    except OmegaConfBaseException as error:
        raise ConfigError(": ".join(_explain(error))) from error
    assert isinstance(typed, ExperimentConfig)
    # No shell expands ~ behind a setting's =.
    typed.data.path, typed.data.cache = map(os.path.expanduser, (typed.data.path, typed.data.cache))
    return typed


def to_plain(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values, fit for files and logs: no credentials."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    plain["data"]["path"] = redact(plain["data"]["path"])  # it goes into run folders, checkpoints and logs
    return {str(k): v for k, v in plain.items()}


@dataclass(frozen=True)
class Header:
    """What the comments at the head of an experiment's file say of it, and where its data are."""

    purpose: str
    hardware: str
    takes: str
    data: str


def read_header(name: str, folder: Path | None = None) -> Header:
    """Read what an experiment's file says of it; what it does not say is empty."""
    path = find("experiments", name, folder)
    comments = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))
    purpose, _, rest = re.sub(r"^#", "", comments[0] if comments else "", flags=re.M).partition("\n")
    # An entry goes on in the lines that are indented further.
    entries = re.findall(r"^ {0,2}(Hardware|Takes): +(.*(?:\n {6,}\S.*)*)", rest, re.M)
    said = {key: " ".join(text.split()) for key, text in entries}
    return Header(purpose.strip(), said.get("Hardware", ""), said.get("Takes", ""), _place(path, folder))


def _place(path: Path, folder: Path | None) -> str:
    """Where an experiment's data are, and whether they are there."""
    data: dict[str, Any] = {}
    try:
        layers = _layers(path, folder)
    except ConfigError as error:  # what is listed beside it is sound
        return f"not known: {error}"
    for _, content in layers:
        data |= content["data"] if isinstance(content.get("data"), dict) else {}
    if data.get("density", "none") != "none" or "path" not in data:
        return "draws its own"
    if re.match(r"[a-z][a-z0-9+.-]*:", where := str(data["path"])):
        return f"at {redact(where)}"
    return f"{where}, {'there' if (Path(where).expanduser() / 'manifest.json').exists() else 'not there yet'}"
