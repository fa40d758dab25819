"""Commands to type next, as the user works: with make or without."""

import os
import shlex
from collections.abc import Mapping


def from_make() -> bool:
    """Whether the command was given by a target of the Makefile."""
    return os.environ.get("DUALSCORE_VIA") == "make"


def command(name: str, *words: str, variables: Mapping[str, str] | None = None, options: str = "") -> str:
    """A command to type next: `make score CKPT=…` (`variables`) or `dualscore score …`."""
    if from_make():
        return " ".join(["make", name, *(f"{k}={_quoted(v)}" for k, v in (variables or {}).items())])
    return " ".join(["dualscore", name, *map(_quoted, words), *([options] if options else [])])


def _quoted(text: str) -> str:
    return text if "…" in text else shlex.quote(text)
