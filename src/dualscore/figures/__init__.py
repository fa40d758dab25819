"""The paper's figures, from runs: PDF, PNG and the numbers."""

from collections.abc import Callable
from pathlib import Path

from dualscore.errors import FigureError
from dualscore.figures.scale_mixture import draw_scale_mixture

FIGURES: dict[str, Callable[[Path, Path], list[Path]]] = {"1": draw_scale_mixture}
"""Number in the paper → (folder of runs, folder for the files) → the files written."""


def draw(number: str, runs: Path, out: Path) -> list[Path]:
    """Draw a figure of the paper.

    Args:
        number: the figure's number.
        runs: folder of all runs.
        out: folder that the files are written to.

    Returns:
        The files.

    Raises:
        FigureError: if there is no such figure, or a run it needs is missing.
    """
    if number not in FIGURES:
        raise FigureError(f"there is no figure {number!r}; there are: {', '.join(FIGURES)}")
    return FIGURES[number](runs, out)
