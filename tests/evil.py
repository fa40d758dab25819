"""A pickle that asks for something to be done."""

from pathlib import Path
from typing import Any


class Evil:
    """Pickled, it asks for a file to be made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("oops"),)
