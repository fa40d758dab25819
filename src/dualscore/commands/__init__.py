"""The commands, one file each: what it takes, and what it calls. Nothing heavy is imported before it runs."""

from collections.abc import Callable

from dualscore.commands import (
    completion,
    convert,
    data,
    denoise,
    evaluate,
    experiments,
    export,
    figures,
    inpaint,
    ood,
    sample,
    score,
    status,
    study,
    submit,
    train,
)
from dualscore.commands.completing import complete
from dualscore.commands.options import Commands
from dualscore.commands.parser import Parser, add_general, general_words

ALL: tuple[Callable[[Commands], None], ...] = (
    data.add,
    train.add,
    evaluate.add,
    figures.add,
    score.add,
    ood.add,
    sample.add,
    denoise.add,
    inpaint.add,
    export.add,
    convert.add,
    study.add,
    submit.add,
    status.add,
    experiments.add,
    completion.add,
)
"""Each adds its command to a parser, in the order that the help lists them."""

__all__ = ["ALL", "Parser", "add_general", "complete", "general_words"]
