"""The parser: commands from functions, the options of every command, and guesses at misspelt words."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, get_args, get_origin, get_type_hints

from dualscore.redaction import shown
from dualscore.settings.suggestions import did_you_mean

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
else:
    Commands = Any

_CHOICE = re.compile(r"(.*invalid choice: '(.*?)') \(choose from (.*)\)$", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two short lines with a guess at what was meant."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        if found := _CHOICE.fullmatch(message):
            said, word, choices = found.groups()
            names = re.findall(r"[\w.+-]+", choices)
            command = "COMMAND" in said or "argument command" in said
            message = f"there is no command {word!r}" if command else said
            message += f"; {did_you_mean(word, names)}there are: {', '.join(names)}"
        self.exit(2, f"error: {shown(message)}\nsee: {self.prog} --help\n")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse unknown words and exit with status 2."""
        there = self._option_string_actions
        guesses = {w: did_you_mean(w.partition("=")[0], there) for w in words if w.startswith("-")}
        hints = "".join(f"; {guess}" for guess in guesses.values() if guess).rstrip()
        self.error(f"unrecognized arguments: {' '.join(words)}{hints}")


def add_command(commands: Commands, function: Callable[..., Any], **settings: Any) -> None:  # noqa: ANN401
    """Add a function as a command.

    Its docstring is the help. Keyword-only parameters are options, the others positional arguments. Each is
    typed `Annotated[kind, help]` or `Annotated[kind, help, {…}]`, with more arguments of `add_argument`, a
    `flag` of another name, or `exclusive` for options that cannot be given together.
    """
    said = str(function.__doc__).rstrip(".")
    parser = commands.add_parser(function.__name__, help=said[0].lower() + said[1:], **settings)
    exclusive = None
    types = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "dry_run":  # an option of every command
            continue
        names, keywords = _argument(parameter, *get_args(types[parameter.name]))
        if keywords.pop("exclusive", False):
            exclusive = exclusive or parser.add_mutually_exclusive_group()
            exclusive.add_argument(*names, **keywords)
        else:
            parser.add_argument(*names, **keywords)
    parser.set_defaults(run=function)


def _argument(
    parameter: inspect.Parameter,
    kind: Any,  # noqa: ANN401 - a type
    shown: str,
    more: dict[str, Any] | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """The names and keywords of a parameter's `add_argument`."""
    keywords: dict[str, Any] = {"help": shown}
    plain = [part for part in get_args(kind) if part is not NoneType]
    if NoneType in get_args(kind):  # left out where not given
        (kind,) = plain
        plain = list(get_args(kind))
    if get_origin(kind) is Literal:
        keywords["choices"] = plain
    elif kind is bool:
        keywords["action"] = "store_false" if parameter.default else "store_true"
    elif get_origin(kind) is None:
        keywords["type"] = kind
    else:
        keywords |= {"type": plain[0], "nargs": "+"}
    keywords |= more or {}
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return [parameter.name], keywords
    required = parameter.default is inspect.Parameter.empty
    keywords |= {"required": True} if required else {"default": parameter.default}
    flag = f"--{'no-' if parameter.default is True else ''}{parameter.name.replace('_', '-')}"
    return [keywords.pop("flag", flag)], {"dest": parameter.name, **keywords}


def call(arguments: argparse.Namespace) -> Any:  # noqa: ANN401 - what the command gives
    """Call the chosen command, as a dry run if it has one and that was asked for."""
    parameters = inspect.signature(arguments.run).parameters
    return arguments.run(**{name: getattr(arguments, name, False) for name in parameters})


def general_words(arguments: argparse.Namespace) -> list[str]:
    """The general options as they were typed."""
    words = [
        f"--{name.replace('_', '-')}" for name in ("quiet", "dry_run") if getattr(arguments, name, False)
    ]
    log_file = getattr(arguments, "log_file", None)
    return words if log_file is None else [*words, "--log-file", str(log_file)]


def add_general(parser: argparse.ArgumentParser, dry: bool = True) -> None:
    """Add the general options, which may stand before or after the command; unset unless given."""
    group = parser.add_argument_group("of every command")
    group.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="show errors and final figures only"
    )
    group.add_argument(
        "--log-file",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="append all that is said to a file too, with times",
    )
    if dry:
        shown = "check the input, say what would be done, and write nothing"
        group.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS, help=shown)
