"""What a command would do, without doing it: the one form in which every `--dry-run` answers."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualscore.errors import DualscoreError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Plan:
    """What was looked at, what would be written, what it would cost."""

    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[DualscoreError] = field(default_factory=list)
    """What would stop the command."""

    def add(self, name: str, text: str) -> "Plan":
        """Add a row."""
        self.rows.append((name, text))
        return self

    def check(self, name: str, look: Callable[..., str], *arguments: Any) -> "Plan":  # noqa: ANN401
        """Add what looking at something gives; what is wrong with it is a problem, and the plan goes on."""
        try:
            self.add(name, look(*arguments))
        except DualscoreError as error:
            self.add(name, "✗ see below")
            self.problems.append(error)
        return self

    def writes(self, folder: Path, *files: str) -> "Plan":
        """Say where results would go, and whether something is there."""
        place = next(path for path in (folder, *folder.parents, Path()) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            why = "cannot be written to" if place.is_dir() else "is a file, and the results need a folder"
            self.problems.append(DualscoreError(f"{place}: {why}"))
        there = "there already" if folder.exists() else "new"
        self.add("writes", f"{folder} ({there}): {', '.join(files)}")
        return self

    def show(self, console: "Console") -> None:
        """Print it.

        Args:
            console: where to.

        Raises:
            DualscoreError: the first thing that would stop the command, of the kind that it would raise.
        """
        from dualscore.terminal.boxes import print_summary

        print_summary(
            console, f"dry run: {self.title}", [*self.rows, ("now", "nothing was written")], last=True
        )
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise type(self.problems[0])(f"{self.problems[0]}{more}")
