"""The models in the box: which there are, and where."""

from pathlib import Path

COLOUR, GRAY = "photographs", "photographs_gray"
BOXED = {
    COLOUR: "photographs of any size, in colour",
    GRAY: "photographs of any size, in gray",
}
"""Their names, and what each is of."""
_HERE = Path(__file__).parent / "models"


def boxed(name: str | Path) -> Path | None:
    """The folder of a model in the box; None where no model of that name is in it."""
    return _HERE / str(name) if str(name) in BOXED else None
