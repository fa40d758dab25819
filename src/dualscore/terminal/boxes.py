"""Boxes and tables that fit, panels on a terminal and plain lines elsewhere; and the plan of a dry run."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box as boxes
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dualscore.errors import DualscoreError
from dualscore.files.plain_text import harmless
from dualscore.terminal.console import Terminal

Row = tuple[str, str]
"""A name and a text."""
WIDEST = 100
"""Widest box, in columns: longer lines are hard to read."""


@dataclass(frozen=True)
class Summary:
    """A title above rows of name and text: a box on a terminal, plain lines elsewhere."""

    title: str
    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        if not console.is_terminal or console.is_dumb_terminal:
            width = max((len(name) for name, _ in self.rows), default=0)
            lines = [self.title, *(f"  {name:{width}}  {text}" for name, text in self.rows)]
            yield Text("\n".join(lines), no_wrap=True, overflow="ignore")
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in self.rows:
            grid.add_row(name, Text(harmless(text)))
        title = Text(harmless(self.title), style="bold")
        box = Panel(grid, title=title, title_align="left", expand=False, box=boxes.ROUNDED)
        yield from console.render(box, options.update(width=min(options.max_width, WIDEST)))


def print_summary(console: Terminal, title: str, rows: Sequence[Row], *, last: bool = False) -> None:
    """Print a summary; the `last` one, a command's result, even if the console is hushed."""
    (console.final if last else console.print)(Summary(title, rows), crop=False)


def fitting(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], spare: Sequence[str] = ()
) -> Table:
    """A table no wider than the terminal: it gives up lines first, then the `spare` columns in turn."""
    kept_rows, table = list(rows), Table()
    for dense, left_out in ((False, ()), *((True, spare[:number]) for number in range(len(spare) + 1))):
        table = Table(
            box=boxes.SIMPLE_HEAD if dense else boxes.HEAVY_HEAD,
            padding=(0, 1, 0, 0) if dense else (0, 1),
            show_edge=not dense,
        )
        kept = [j for j, name in enumerate(columns) if name not in left_out]
        for j in kept:
            table.add_column(columns[j], no_wrap=not dense or j == 0)
        for row in kept_rows:
            table.add_row(*(row[j] for j in kept))
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
    return table


@dataclass(frozen=True)
class Plan:
    """A dry run: what was looked at, what the command would write, and what that would cost."""

    title: str
    rows: Iterable[Row]
    """Each is made after its check, which raises what would stop the command."""

    def show(self, console: Terminal) -> None:
        """Print the rows as far as they can be made, then raise the error as the command would."""
        shown: list[Row] = []
        try:
            for row in self.rows:
                shown.append(row)
        finally:
            print_summary(
                console, f"dry run: {self.title}", [*shown, ("now", "nothing was written")], last=True
            )


def writes(folder: Path, *files: str) -> Row:
    """Where results would go; refuses a folder that cannot be written to."""
    place = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not place.is_dir():
        raise DualscoreError(f"{place}: is a file, and the results need a folder")
    if not os.access(place, os.W_OK):
        raise DualscoreError(f"{place}: cannot be written to")
    return "writes", f"{folder} ({'there already' if folder.exists() else 'new'}): {', '.join(files)}"
