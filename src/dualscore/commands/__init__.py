"""The commands: each is a function whose signature declares its options. Nothing heavy is imported early."""

from collections.abc import Callable
from typing import Any

from dualscore.commands.completion import complete, completion
from dualscore.commands.experiment_commands import data, evaluate, experiments, status, study, submit, train
from dualscore.commands.image_commands import PHOTOGRAPHS, denoise, inpaint, ood, sample, score
from dualscore.commands.model_commands import convert, export, figures
from dualscore.commands.parser import Commands, Parser, add_command, add_general, call, general_words

ALL: dict[Callable[..., Any], dict[str, Any]] = {
    data: {"add_help": False},  # data_prep has options and help of its own
    train: {},
    evaluate: {},
    figures: {},
    score: {"epilog": PHOTOGRAPHS},
    ood: {"epilog": PHOTOGRAPHS},
    sample: {},
    denoise: {},
    inpaint: {},
    export: {},
    convert: {},
    study: {},
    submit: {},
    status: {},
    experiments: {},
    completion: {},
}
"""The commands in the order of the help, with further arguments for their parsers."""


def add_all(commands: Commands) -> None:
    """Add every command to a parser."""
    for function, settings in ALL.items():
        add_command(commands, function, **settings)


__all__ = ["Parser", "add_all", "add_general", "call", "complete", "general_words"]
