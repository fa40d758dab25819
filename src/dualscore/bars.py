"""Bars and counts of what is done: seen on a terminal alone, and gone when it is."""

import time
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

BETWEEN_LINES = 60.0
"""Seconds between lines where there is no terminal."""


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
    """A count of what may have no end that is known; yields what adds to it. In a file, a line a minute."""
    columns = TextColumn("{task.description} {task.completed:,.0f} " + unit), TimeElapsedColumn()
    done, told = 0, time.monotonic()

    def add(count: int) -> None:
        nonlocal done, told
        done += count
        progress.advance(task, count)
        if not console.is_interactive and time.monotonic() - told > BETWEEN_LINES:
            told = time.monotonic()
            console.print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {doing} {done:,} {unit}", soft_wrap=True)

    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task(doing, total=None)
        yield add
