"""dualscore completion, and what there is to complete: experiments, runs, settings, figures. No torch."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from dualscore.shipped import places
from dualscore.terminal.console import shared_console

Shell = Annotated[Literal["bash", "zsh", "fish"], 'load it with: eval "$(dualscore completion bash)"']


def completion(shell: Shell) -> None:
    """Print what makes a shell complete commands, options and names."""
    from argcomplete.shell_integration import shellcode

    shared_console().final(shellcode(["dualscore"], shell=shell), soft_wrap=True)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions and end the process; otherwise do nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in (a for group in groups for command in group.choices.values() for a in command._actions):
        if (names := NAMES.get(action.dest)) is not None:
            action.completer = names
    argcomplete.autocomplete(parser, exclude=["--help", "-h"])


def _files_in(folder: str) -> Callable[..., list[str]]:
    return lambda **_: sorted({path.stem for place in places(folder) for path in place.glob("*.yaml")})


def _experiments(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    return _files_in("sweeps" if getattr(parsed_args, "sweep", False) else "experiments")()


def _models(prefix: str, **_: object) -> list[str]:
    """Runs, then files: a model may be anywhere."""
    from argcomplete.completers import FilesCompleter

    from dualscore.runs.folder import runs_below

    runs = [run for run in runs_below() if run.startswith(prefix)]
    return [*runs, *(name for name in FilesCompleter()(prefix) if name.rstrip("/") not in runs)]


def _run_names(**_: object) -> list[str]:
    from dualscore.runs.folder import runs_below

    return [Path(run).name for run in runs_below()]


def _settings(prefix: str, **_: object) -> list[str]:
    """Every setting, as `optim.lr=`."""
    from dataclasses import fields, is_dataclass

    from dualscore.settings.config import ExperimentConfig

    found = []
    for section in fields(ExperimentConfig):
        kind = section.type
        inside = [field.name for field in fields(kind)] if is_dataclass(kind) else []
        found += [f"{section.name}.{name}=" for name in inside] or [f"{section.name}="]
    return [name for name in found if name.startswith(prefix)]


NAMES: dict[str, Callable[..., list[str]]] = {
    "experiment": _experiments,
    "study": _files_in("studies"),
    "model": _models,
    "words": _models,
    "run_folder": _models,
    "other": _models,
    "checkpoint": _models,
    "name": _run_names,
    "overrides": _settings,
    "handed_over": lambda **_: ["build", "verify"],
    "only": lambda **_: ["table1", "table2", "1", "2", "3", "4", "5"],
}
"""Completers by argument name; all others complete to files."""
