"""How figures look, and how they are written."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualscore.shards import write_aside

TRUTH, DUAL, SINGLE, DATA = "#222222", "#1f77b4", "#d95f02", "#c8c8c8"

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # letters stay letters
}


def style() -> AbstractContextManager[None]:
    """Inside it everything is drawn and written in one style."""
    return plt.rc_context(_STYLE)


def panels(columns: int) -> tuple[Figure, list[Axes]]:
    """A row of panels."""
    figure, axes = plt.subplots(1, columns, figsize=(2.7 * columns, 2.4), layout="constrained")
    return figure, list(axes)


def write(figure: Figure, numbers: dict[str, Any], out: Path, name: str) -> list[Path]:
    """Write a figure as PDF and PNG, and its numbers as JSON.

    Args:
        figure: what was drawn; it is closed.
        numbers: what was drawn, as plain values.
        out: folder.
        name: of the files, without ending.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.{ending}" for ending in ("pdf", "png", "json")]
    figure.savefig(files[0])
    figure.savefig(files[1], dpi=200)
    plt.close(figure)
    write_aside(files[2], (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode())
    return files
