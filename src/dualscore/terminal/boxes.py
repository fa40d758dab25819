"""Boxes and tables that fit, panels on a terminal and plain lines elsewhere; and the plan of a dry run."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box as boxes
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dualscore.errors import DualscoreError
from dualscore.files.plain_text import harmless
from dualscore.terminal.console import final

Rows = Sequence[tuple[str, str]]
WIDEST = 100
"""Widest box, in columns: longer lines are hard to read."""


@dataclass(frozen=True)
class Summary:
    """A title above rows of name and text: a box on a terminal, plain lines elsewhere."""

    title: str
    rows: Rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        if console.is_terminal and not console.is_dumb_terminal:
            yield from console.render(self._box(), options.update(width=min(options.max_width, WIDEST)))
            return
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [self.title, *(f"  {name:{width}}  {text}" for name, text in self.rows)]
        yield Text("\n".join(lines), no_wrap=True, overflow="ignore")

    def _box(self) -> Panel:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in self.rows:
            grid.add_row(name, Text(harmless(text)))
        title = Text(harmless(self.title), style="bold")
        return Panel(grid, title=title, title_align="left", expand=False, box=boxes.ROUNDED)


def print_summary(console: Console, title: str, rows: Rows, *, last: bool = False) -> None:
    """Print a summary; the `last` one, a command's result, even if the console is hushed."""
    summary = Summary(title, rows)
    if last:
        final(console, summary, crop=False)
    else:
        console.print(summary, crop=False)


def fitting(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], spare: Sequence[str] = ()
) -> Table:
    """A table no wider than the terminal: it gives up lines first, then the `spare` columns in turn."""
    kept_rows = [list(row) for row in rows]
    table = _table(columns, kept_rows, (), boxes.HEAVY_HEAD)
    for number in range(len(spare) + 1):
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
        table = _table(columns, kept_rows, spare[:number], boxes.SIMPLE_HEAD)
    return table


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str | Text]], left_out: Sequence[str], style: boxes.Box
) -> Table:
    kept = [j for j, name in enumerate(columns) if name not in left_out]
    dense = style is boxes.SIMPLE_HEAD
    table = Table(box=style, padding=(0, 1, 0, 0) if dense else (0, 1), show_edge=not dense)
    for j in kept:
        table.add_column(columns[j], no_wrap=not dense or j == 0)
    for row in rows:
        table.add_row(*(row[j] for j in kept))
    return table


@dataclass
class Plan:
    """What a dry run looked at, what the command would write, and what that would cost."""

    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[DualscoreError] = field(default_factory=list)
    """What would stop the command."""

    def add(self, name: str, text: str) -> "Plan":
        """Add a row."""
        self.rows.append((name, text))
        return self

    def check(self, name: str, look: Callable[..., str], *arguments: Any) -> "Plan":  # noqa: ANN401
        """Add a row with a check's result, or its error to the problems."""
        try:
            self.add(name, look(*arguments))
        except DualscoreError as error:
            self.add(name, "✗ see below")
            self.problems.append(error)
        return self

    def writes(self, folder: Path, *files: str) -> "Plan":
        """Add where results would go, and whether the folder exists and can be written to."""
        place = next(path for path in (folder, *folder.parents, Path()) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            why = "cannot be written to" if place.is_dir() else "is a file, and the results need a folder"
            self.problems.append(DualscoreError(f"{place}: {why}"))
        there = "there already" if folder.exists() else "new"
        self.add("writes", f"{folder} ({there}): {', '.join(files)}")
        return self

    def show(self, console: Console) -> None:
        """Print it, then raise the first problem as the command would."""
        rows = [*self.rows, ("now", "nothing was written")]
        print_summary(console, f"dry run: {self.title}", rows, last=True)
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise type(self.problems[0])(f"{self.problems[0]}{more}")
