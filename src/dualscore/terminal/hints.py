"""Hints for messages: what was probably meant, which runs exist, what to type next."""

import difflib
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from dualscore.shipped import places

FEW = 8
"""How many names to list."""


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """`did you mean …? ` with the closest name, or nothing."""
    close = difflib.get_close_matches(name, list(there), 1)
    return f"did you mean {close[0]}? " if close else ""


def from_make() -> bool:
    """Whether the command was given by a target of the Makefile, whose users know its variables only."""
    return os.environ.get("DUALSCORE_VIA") == "make"


def option(flag: str, variable: str) -> str:
    """An option as the user writes it: `--resize`, or `RESIZE=1` with make."""
    return variable if from_make() else flag


def afresh() -> str:
    """The option that starts a new run beside the old one."""
    return option("--fresh", "FRESH=1")


def command(name: str, *words: str, variables: Mapping[str, str] | None = None, options: str = "") -> str:
    """A command to type next: `make score CKPT=…` (`variables`) or `dualscore score …`, as the user works."""
    if from_make():
        return " ".join(["make", name, *(f"{k}={_quoted(v)}" for k, v in (variables or {}).items())])
    return " ".join(["dualscore", name, *map(_quoted, words), *([options] if options else [])])


def _quoted(text: str) -> str:
    return text if "…" in text else shlex.quote(text)


def runs_below(root: Path = Path("runs")) -> list[str]:
    """Paths of runs with a checkpoint below a folder, sweeps' included, the latest first."""
    found = [*root.glob("*/checkpoints/*.ckpt"), *root.glob("*/*/checkpoints/*.ckpt")]
    latest: dict[Path, float] = {}
    for path in found:
        folder = path.parent.parent
        latest[folder] = max(latest.get(folder, 0.0), path.stat().st_mtime)
    return [str(folder) for folder in sorted(latest, key=lambda folder: -latest[folder])]


def missing_run(path: Path) -> str:
    """The end of a message about a missing run or model: what exists instead."""
    root = path.parent if path.parent != Path() else Path("runs")
    there = runs_below(root) or runs_below()
    is_experiment = any((place / f"{path.name}.yaml").is_file() for place in places("experiments"))
    if is_experiment and path.name not in {Path(run).name for run in there}:
        trains = command("train", path.name, variables={"EXP": path.name})
        return f"{path.name} is not trained yet; {trains} trains it"
    if not there:
        return f"there are no runs yet; {command('train', 'EXPERIMENT', variables={'EXP': '…'})} trains one"
    names = {Path(run).name: run for run in there}
    guess = did_you_mean(path.name, names)
    shown = ", ".join(there[:FEW]) + (f" and {len(there) - FEW} more" if len(there) > FEW else "")
    return f"{guess}there are: {shown}"
