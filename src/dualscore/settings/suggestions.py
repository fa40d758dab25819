"""The name that was probably meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """`did you mean …? ` with the closest name, or nothing."""
    close = difflib.get_close_matches(name, list(there), 1)
    return f"did you mean {close[0]}? " if close else ""
