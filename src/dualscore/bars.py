"""Bars and counts of what is done: seen on a terminal alone, and gone when it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(console: Console, unit: str = "", shown: bool = True) -> Progress:
    """A bar of how much of a known number is done."""
    return Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit},".lstrip(",")),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not (console.is_terminal and shown),
    )


@contextmanager
def counted(console: Console, doing: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A count of what may have no end that is known; yields what adds to it."""
    columns = TextColumn("{task.description} {task.completed:,.0f} " + unit), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda count: progress.advance(task, count)
