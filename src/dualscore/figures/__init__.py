"""The paper's figures and tables, from runs: PDF, PNG and the numbers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from dualscore.errors import FigureError
from dualscore.figures.dimension import draw_dimension
from dualscore.figures.generalization import draw_generalization
from dualscore.figures.histogram import draw_histogram
from dualscore.figures.paper_tables import draw_denoising, draw_likelihoods
from dualscore.figures.scale_mixture import draw_scale_mixture
from dualscore.figures.slices import draw_slices
from dualscore.figures.trained import Trained, open_run
from dualscore.settings.suggestions import did_you_mean
from dualscore.terminal import final


@dataclass(frozen=True)
class Request:
    """What figures are drawn from."""

    run: Path
    """A run's folder; other runs that figures need are looked for next to it."""
    out: Path
    other: Path | None = None
    """A run on other images, for figure 2."""
    overrides: Sequence[str] = ()
    """Settings that win over what the runs were trained with."""


OF_A_RUN: dict[str, Callable[[Trained, Path], list[Path]]] = {
    "table1": draw_denoising,
    "table2": draw_likelihoods,
    "3": draw_histogram,
    "4": draw_slices,
    "5": draw_dimension,
}
FIGURES = ("table1", "table2", "1", "2", "3", "4", "5")
"""As the paper numbers them."""


def draw_all(request: Request, wanted: Sequence[str], console: Console) -> list[Path]:
    """Draw the wanted figures, or without any all that can be drawn; returns the files written.

    Raises a DualscoreError if a figure that is asked for cannot be drawn, or none can.
    """
    trained = cache(lambda: open_run(request.run, request.overrides, console))
    files: list[Path] = []
    for name in check_names(wanted):
        try:
            found = _draw(name, request, trained)
        except FigureError as error:
            if wanted:
                raise
            console.print(f"left out: {error}", soft_wrap=True)
            continue
        for file in found:
            final(console, f"written to {file}", soft_wrap=True)
        files += found
    if not files:
        raise FigureError(f"{request.run}: no figure could be drawn")
    return files


def check_names(wanted: Sequence[str]) -> Sequence[str]:
    """Refuse unknown names; returns the figures to draw, all of them where none is named."""
    for name in wanted:
        if name not in FIGURES:
            guess = did_you_mean(re.sub(r"fig(ure)?|\s", "", name.lower()), FIGURES)
            raise FigureError(f"there is no figure {name!r}; {guess}there are: {', '.join(FIGURES)}")
    return wanted or FIGURES


def _draw(name: str, request: Request, trained: Callable[[], Trained]) -> list[Path]:
    if name == "1":
        return draw_scale_mixture(request.run.parent, request.out)
    if name == "2":
        return draw_generalization(trained(), request.other, request.overrides, request.out)
    return OF_A_RUN[name](trained(), request.out)


__all__ = ["FIGURES", "Request", "check_names", "draw_all"]
