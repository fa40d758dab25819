"""The commands: each is a function whose signature declares its options. Nothing heavy is imported early."""

from collections.abc import Callable
from typing import Any

from dualscore.commands.coding_commands import compress, decompress
from dualscore.commands.completion import complete, completion
from dualscore.commands.experiment_commands import data, evaluate, experiments, status, study, submit, train
from dualscore.commands.model_commands import convert, denoise, export, figures, inpaint, sample
from dualscore.commands.parser import Commands, Parser, add_command, add_general, call
from dualscore.commands.scoring_commands import PHOTOGRAPHS, measure, noise, ood, score

ALL: tuple[Callable[..., Any], ...] = (
    data, train, evaluate, figures, score, noise, measure, ood, compress, decompress, sample, denoise,
    inpaint, export, convert, study, submit, status, experiments, completion,
)  # fmt: skip
"""The commands in the order of the help."""
_MORE: dict[Callable[..., Any], dict[str, Any]] = {
    data: {"add_help": False},  # data_prep has options and help of its own
    score: {"epilog": PHOTOGRAPHS},
    measure: {"epilog": PHOTOGRAPHS},
    ood: {"epilog": PHOTOGRAPHS},
}
"""Further arguments of their parsers."""


def add_all(commands: Commands) -> None:
    """Add every command to a parser."""
    for function in ALL:
        add_command(commands, function, **_MORE.get(function, {}))


__all__ = ["Parser", "add_all", "add_general", "call", "complete", "data"]
