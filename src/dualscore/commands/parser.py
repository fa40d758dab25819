"""The parser: commands from functions, the options of every command, and guesses at misspelt words."""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, get_args, get_origin, get_type_hints

from dualscore.errors import did_you_mean
from dualscore.redaction import shown

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
    `flag` of another name, or `exclusive` for options that cannot be given together. A parameter that is a
    dataclass stands for an option for each of its fields.
    """
    said = str(function.__doc__).rstrip(".")
    parser = commands.add_parser(function.__name__, help=said[0].lower() + said[1:], **settings)
    exclusive = None
    for parameter in _parameters(function):
        names, keywords = _argument(parameter, *get_args(parameter.annotation))
        if keywords.pop("exclusive", False):
            exclusive = exclusive or parser.add_mutually_exclusive_group()
            exclusive.add_argument(*names, **keywords)
        else:
            parser.add_argument(*names, **keywords)
    parser.set_defaults(run=function)


def _parameters(function: Any) -> Iterator[inspect.Parameter]:  # noqa: ANN401 - or a class
    """What a function takes, with its types; of a dataclass its fields, with the values of its default."""
    types = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if is_dataclass(kind := types[parameter.name]):
            for field in _parameters(kind):
                given = {} if parameter.default is parameter.empty else vars(parameter.default)
                default = given.get(field.name, field.default)
                yield field.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=default)
        elif parameter.name != "dry_run":  # an option of every command
            yield parameter.replace(annotation=kind)


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

    def value(name: str, kind: Any) -> Any:  # noqa: ANN401 - of any type
        if is_dataclass(kind):
            return kind(**{field.name: getattr(arguments, field.name) for field in fields(kind)})  # type: ignore[operator]
        return getattr(arguments, name, False)

    types = get_type_hints(arguments.run)
    names = inspect.signature(arguments.run).parameters
    return arguments.run(**{name: value(name, types[name]) for name in names})


def add_general(parser: argparse.ArgumentParser) -> None:
    """Add the general options, which may stand before or after the command; unset unless given."""
    group = parser.add_argument_group("of every command")
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "--quiet": ("show errors and final figures only", {"action": "store_true"}),
        "--log-file": (
            "append all that is said to a file too",
            {"type": Path, "metavar": "FILE"},
        ),
        "--dry-run": ("check the input, say what would be done, and write nothing", {"action": "store_true"}),
    }
    for name, (help_text, more) in options.items():
        group.add_argument(name, default=argparse.SUPPRESS, help=help_text, **more)
