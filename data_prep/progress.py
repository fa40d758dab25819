"""Progress bars with a rate and the time left, on standard error."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dualscore.terminal.console import shared_console

POLL_SECONDS = 0.3


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s")


@contextmanager
def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yields a function that sets how much is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal and not shared_console().hushed
    with Progress(*columns, console=console, disable=not live) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def polling(update: Callable[[], None]) -> Iterator[None]:
    """Call ``update`` a few times a second from a thread while the block runs, and once at its end."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(POLL_SECONDS):
            update()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        update()
