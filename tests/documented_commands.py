"""Finds every command that a page gives, makes of it what make does, and holds that against the code."""

import argparse
import re
import shlex
import subprocess
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from data_prep import cli as preparing
from data_prep import examples
from dualscore import cli as scoring
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment
from dualscore.study.variants import load_study
from workspace import ROOT

PROGRAMS = (
    "make",
    "dualscore",
    "python",
    ".venv/bin/jupyter",
    "sbatch",
    "scancel",
    "scontrol",
    "printf",
)
LESSONS = {"extending.md", "objective.md"}
"""Pages whose commands are of files that they have one write: tests of their own go through them."""
_BLOCK = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s"'`,;)]+)"""
_INLINE = re.compile(rf"make [a-z][a-z-]*(?: [A-Z]+={_VALUE})*")
_SENTINEL = "sentinel"


@dataclass(frozen=True)
class Documented:
    """A command, and the page it stands on."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def pages() -> list[Path]:
    """Everything that tells people what to type, the README first."""
    folders = {"docs": "*.md", "experiments": "*.yaml", "studies": "*.yaml", "sweeps": "*.yaml"}
    others = [path for folder, kind in folders.items() for path in sorted((ROOT / folder).glob(kind))]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in others if p.name not in LESSONS)]


def find(page: Path) -> list[Documented]:
    """A page's commands, with all that may be left out: of its code blocks, and `make …` in its lines."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    if page.suffix == ".yaml":
        header = "\n".join(re.findall(r"^#(.*)$", text, re.MULTILINE))
        return [Documented(name, found[0]) for found in _INLINE.finditer(header)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [re.sub(r"\s+#( .*)?$", "", line).partition(" | ")[0] for line in _BLOCK.findall(prose)]
    given = [part for line in blocks for part in line.split(" && ") if part.split()[0] in PROGRAMS]
    given = [re.sub(r" > \S+$", "", line) if line.startswith("make ") else line for line in given]
    inline = re.findall(r"`([^`\n]+)`", prose)
    given += [code for code in inline if re.fullmatch(_INLINE, code) or code.startswith("python benchmarks/")]
    return [Documented(name, complete(line)) for line in dict.fromkeys(given)]


def complete(text: str) -> str:
    """A command with everything that stands in brackets because it may be left out."""
    return re.sub(r"\[((?:[A-Z]+=|--)[^\]]*)\]", r"\1", text.replace("[key=value …] ", ""))


def expand(text: str, folder: Path) -> list[list[str]]:
    """The command lines that make would run, without running any; of other programs the line itself.

    Args:
        text: a command.
        folder: where it is typed; holds `venv/.installed`, newer than what it depends on.

    Returns:
        Words of each; those of Python without the interpreter.

    Raises:
        AssertionError: if make refuses it, or a variable changes nothing.
    """
    if not text.startswith("make "):
        return [shlex.split(text)[1:] if text.startswith("python ") else shlex.split(text)]
    words = shlex.split(text)[1:]
    recipe = _dry(words, folder)
    for index, word in enumerate(words):
        variable, equals, _ = word.partition("=")
        if equals:
            without = words[:index] + words[index + 1 :]
            changed = _SENTINEL in _dry([*without, f"{variable}={_SENTINEL}"], folder)
            assert changed or _dry(without, folder) != recipe, f"{variable}=… changes nothing"
    if len(words) == 1 and 'echo "error: say' in recipe:
        return []  # named, not typed: it wants more than its name
    found = re.findall(
        r"venv/bin/python ((?:-m (?:dualscore|data_prep(?:\.examples)?)|\S+\.py)(?: .*)?)$", recipe, re.M
    )
    return [shlex.split(line) for line in found]


def _dry(words: list[str], folder: Path) -> str:
    makefile = ["make", "--no-print-directory", "-n", "-f", str(ROOT / "Makefile"), f"VENV={folder / 'venv'}"]
    done = subprocess.run([*makefile, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make refuses it: {done.stderr.strip()}"
    return done.stdout.replace("\\\n", " ")


def check(line: list[str]) -> None:
    """Hold a command line against the programs: commands, options, experiments, studies, settings.

    Raises:
        AssertionError: naming what is not there.
    """
    if line[:2] == ["-m", "data_prep"]:
        _, rest = _parse(parsers()[1], line[2:])
        assert not rest, f"unknown: {' '.join(rest)}"
    elif line[:2] == ["-m", "data_prep.examples"]:
        _parse(examples.parser(), line[2:])
    elif line[0].endswith(".py"):
        script = (ROOT / line[0]).read_text()
        for option in (word for word in line if word.startswith("--")):
            assert f'"{option}"' in script, f"{line[0]} has no {option}"
        if "--experiment" in line:
            load_experiment(line[line.index("--experiment") + 1], [w for w in line if "=" in w])
    elif line[0] == "dualscore" or line[:2] == ["-m", "dualscore"]:
        options, rest = _parse(parsers()[0], line[1 + (line[0] == "-m") :])
        strangers = [
            w for w in rest if w.startswith("-") or "=" not in w or not hasattr(options, "overrides")
        ]
        assert not strangers, f"unknown: {' '.join(strangers)}"
        settings = [*getattr(options, "overrides", []), *rest]
        if options.command == "study":
            load_study(options.study)
        elif getattr(options, "sweep", False):
            assert (ROOT / "sweeps" / f"{options.experiment}.yaml").is_file()
        elif experiment := getattr(options, "experiment", None):
            load_experiment(experiment, settings)
    elif line[0].endswith("jupyter"):
        assert (ROOT / line[2]).is_file(), f"{line[2]} is missing"


def parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Of dualscore and of data_prep, whatever else comes with them."""
    return scoring._parser()[0], preparing._parser("data_prep")


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    try:
        return parser.parse_known_args(words)
    except SystemExit:
        raise AssertionError(f"{parser.prog} does not take: {' '.join(words)}") from None


def setting_names(schema: Any = ExperimentConfig, prefix: str = "") -> set[str]:
    """Every setting's whole name."""
    names = set()
    for field in fields(schema):
        default = field.default_factory() if callable(field.default_factory) else field.default
        nested = is_dataclass(default)
        names |= setting_names(default, f"{prefix}{field.name}.") if nested else {prefix + field.name}
    return names


def option_names() -> set[str]:
    """Every option of every command, of data_prep and of the scripts."""
    found: set[str] = set()
    for parser in parsers():
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        for command in commands.choices.values():
            found |= set(command._option_string_actions)
    for script in (*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "newcomer.py"):
        found |= set(re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text()))
    return found
