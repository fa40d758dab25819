"""A log file: plain lines with the time, appended; several processes can share it."""

import os
import re
import time
from pathlib import Path
from typing import TextIO

from dualscore.errors import ConfigError
from dualscore.files.plain_text import harmless

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_MOVES = re.compile(r"\r(?!\n)|\x1b\[[0-9;?]*[A-LN-Za-ln-z]")
"""Codes that move the cursor: a progress bar is redrawn with them."""


def now() -> str:
    """The time of a line: local, as 2026-01-31 23:59:59."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


class LogFile:
    """A file that lines are appended to.

    Every line is one write in append mode, so that the processes of a run do not tear each other's lines.
    A disk that takes no more costs the log, and not the run.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._mark = f"rank {rank}: " if rank else ""
        self._rest = ""
        self.lost = ""
        """Why lines are missing; nothing if none are."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without waiting for who reads a pipe, if it is one: nobody may.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
            os.set_blocking(self._file, True)
        except OSError as error:
            raise ConfigError(f"--log-file {path}: cannot be written: {error.strerror}") from error

    def write(self, text: str) -> None:
        """Append text; a line is written as soon as it ends, an empty one never."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if plain := harmless(_STYLE.sub("", line)).rstrip():
                try:
                    os.write(self._file, f"{now()} {self._mark}{plain}\n".encode(errors="replace"))
                except OSError as error:
                    self.lost = error.strerror or str(error)

    def flush(self) -> None:
        """Nothing waits; a console asks for it."""

    def close(self) -> None:
        """Write an unfinished line, and close."""
        self.write("\n")
        os.close(self._file)


class Tee:
    """A stream whose lines go into a log file too; what a progress bar draws does not."""

    def __init__(self, stream: TextIO, log: LogFile) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        """Write text."""
        if not _MOVES.search(text):
            self._log.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
