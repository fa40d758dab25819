"""What people see and read: one console, quiet or not, with a log file or without, and what helps them on."""

from dualscore.terminal.console import (
    Terminal,
    command,
    final,
    from_make,
    quiet,
    rank,
    shared_console,
    speaking,
)

__all__ = [
    "Terminal",
    "command",
    "final",
    "from_make",
    "quiet",
    "rank",
    "shared_console",
    "speaking",
]
