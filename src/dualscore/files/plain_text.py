"""Text that any terminal, font and file can show, and YAML that stands for no more than it says."""

import os
import re

# What a terminal obeys instead of showing it: control signs but line ends and tabs, and what is no character.
_OBEYED = {n: "?" for n in (*range(32), *range(127, 160), *range(0xD800, 0xE000))} | {9: "\t", 10: "\n"}
# Octal, binary, hexadecimal, to the base 60, and with _ between digits.
_OTHER_NUMBER = re.compile(
    "[-+]?(0[0-9_]+|0[bx][0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])+([.][0-9_]*)?|"
    "[.]?[0-9][0-9.]*_[0-9_.]*([eE][-+]?[0-9]+)?)"
)


NO_TEXT = "holds letters that are no text here; use a name (or a link) of ASCII, or set LC_ALL=C.UTF-8"


def is_text(name: str) -> bool:
    """Whether files can hold a name, and be called it: not if it is no Unicode, or unknown to the locale."""
    try:
        name.encode(), os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def harmless(text: str) -> str:
    """Text of any origin, with a question mark for each sign that a terminal would obey."""
    return text.translate(_OBEYED)


def one_line(text: object) -> str:
    """A text, or an error's message, in one line."""
    return " ".join(str(text).split())


def printable(text: str) -> str:
    """A file's name without what no terminal or font can show."""
    shown = text.encode(errors="replace").decode()
    return "".join(c if c.isprintable() else "?" for c in shown)


def refuse_surprises(text: str) -> None:
    """Refuse YAML that stands for something else than it says.

    Aliases, ten lines of which can stand for 10¹⁰ values, and numbers that are others: 010 is 8, 1_0 is 10.
    """
    import yaml  # text alone is shown without it

    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            where = f"line {token.start_mark.line + 1}"
            raise yaml.YAMLError(f"{where}: an alias, *{token.value:.20}; write the value out")
        if isinstance(token, yaml.ScalarToken) and token.plain and _OTHER_NUMBER.fullmatch(token.value):
            raise yaml.YAMLError(
                f"{token.value:.40}: would be read as another number; write it in decimals, "
                "without zeros before it or _ in it, or as a text in quotes"
            )
