"""Typed look-ups in parsed JSON that name the file and the key on failure."""

import json
import math
import re
from pathlib import Path
from typing import Any

from dualscore.errors import DataError, DualscoreError

MOST = 2**63 - 1
"""Largest whole number that files, arrays and tensors count with."""


def parse_json(raw: str | bytes) -> Any:  # noqa: ANN401 - JSON
    """What a document says; ValueError for what is none, or is nested too deep, or has too large a number.

    No float holds such a number, so it would fail wherever it is used.
    """
    try:
        return json.loads(raw, parse_int=_whole, parse_float=_real)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path) -> dict[str, Any]:
    """A file's object; an empty one where the file cannot be read or holds something else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _whole(digits: str) -> int:
    _real(digits)
    return int(digits)


def _real(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits:.20}… is too large a number")
    return number


class TypedJson:
    """A value of a parsed document."""

    def __init__(self, value: object, path: str | Path, key: str = "") -> None:
        self.value: Any = value
        self.path, self.key = path, key

    def fail(self, problem: str) -> DualscoreError:
        """What to say of a problem here."""
        return DataError(f"{self.path}: {self.key or 'the document'} {problem}; prepare the data set again")

    def __getitem__(self, name: str | int) -> "TypedJson":
        key = f"{self.key}.{name}" if self.key else str(name)
        if isinstance(name, str) and name not in self.mapping():
            raise type(self)(None, self.path, key).fail("is missing")
        return type(self)(self.value[name], self.path, key)

    def require(self, *kinds: type) -> Any:  # noqa: ANN401 - JSON
        """The value, if it is of one of these types."""
        # bool is an int in Python, not in JSON
        if not isinstance(self.value, kinds) or isinstance(self.value, bool):
            raise self.fail(f"must be of type {kinds[-1].__name__}, not {type(self.value).__name__}")
        return self.value

    def count(self) -> int:
        """A whole number from 1 on."""
        number: int = self.require(int)
        if number < 1:
            raise self.fail(f"must be at least 1, not {number}")
        if number > MOST:
            raise self.fail(f"has an impossible value: {number!r:.40}")
        return number

    def number(self, least: float = -math.inf) -> float:
        """A finite number, no smaller than `least`."""
        try:
            number = float(self.require(int, float))
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and number >= least):
            raise self.fail(f"has an impossible value: {self.value!r:.40}")
        return number

    def text(self, pattern: str = r"[^\x00-\x1f\x7f]+") -> str:
        """A text that a pattern fits whole; by default any on one line, without a terminal's commands."""
        text: str = self.require(str)
        if not re.fullmatch(pattern, text):
            raise self.fail(f"has an impossible value: {text!r:.200}")
        return text

    def mapping(self) -> dict[str, Any]:
        """An object, as it is."""
        return dict(self.require(dict))

    def items(self) -> list["TypedJson"]:
        """The values of a list."""
        return [self[position] for position in range(len(self.require(list)))]

    def numbers(self, length: int) -> list[float]:
        """So many finite numbers."""
        numbers = [item.number() for item in self.items()]
        if len(numbers) != length:
            raise self.fail(f"must hold {length} numbers, one a channel, not {len(numbers)}")
        return numbers
