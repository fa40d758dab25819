"""The paper's figures and tables, from runs: PDF, PNG and the numbers."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dualscore.errors import FigureError, did_you_mean
from dualscore.figures import page
from dualscore.figures.around_images import draw_dimension, draw_slices
from dualscore.figures.distribution import draw_histogram, of_energies
from dualscore.figures.network_pairs import draw_generalization, draw_scale_mixture
from dualscore.figures.paper_tables import draw_denoising, draw_likelihoods
from dualscore.figures.trained import Trained

FIGURES: dict[str, Callable[[Trained], page.Drawn]] = {
    "table1": draw_denoising,
    "table2": draw_likelihoods,
    "1": draw_scale_mixture,
    "2": draw_generalization,
    "3": draw_histogram,
    "4": draw_slices,
    "5": draw_dimension,
}  # as the paper numbers them


def draw_all(trained: Trained, wanted: Sequence[str], out: Path) -> Iterator[Path]:
    """Draw the wanted figures, or without any all that can be drawn; the files as they are written.

    Raises a DualscoreError if a figure that is asked for cannot be drawn, or none can.
    """
    nothing = True
    for name in check_names(wanted):
        try:
            with page.style():
                drawn = FIGURES[name](trained)
                files = drawn.write(out, f"figure{name}" if name.isdigit() else name)
        except FigureError as error:
            if wanted:
                raise
            trained.console.print(f"left out: {error}", soft_wrap=True)
        else:
            nothing = False
            yield from files
    if nothing:
        raise FigureError(f"{trained.folder}: no figure could be drawn")


def draw_energies(energies: Path, dimension: int, out: Path) -> list[Path]:
    """Draw figure 3 of a NumPy file of energies −log p(x) in nats, shape (n,), where d = `dimension`."""
    with page.style():
        return of_energies(energies, dimension).write(out, "figure3")


def check_names(wanted: Sequence[str]) -> Sequence[str]:
    """Refuse unknown names; returns the figures to draw, all of them where none is named."""
    for name in wanted:
        if name not in FIGURES:
            guess = did_you_mean(re.sub(r"fig(ure)?|\s", "", name.lower()), FIGURES)
            raise FigureError(f"there is no figure {name!r}; {guess}there are: {', '.join(FIGURES)}")
    return wanted or list(FIGURES)
