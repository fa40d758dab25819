"""The one console of a process, which can be hushed and copied into a log file; and commands to type next."""

import logging
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, cast

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.control import Control
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dualscore.files.plain_text import harmless
from dualscore.terminal.logfile import LogFile, Tee, now

WIDE = 200
"""Columns in a file or a pipe, where lines need not be cut."""
_SIZE = {"COLUMNS", "LINES"}
_USABLE = re.compile("0*([2-9][0-9]|[1-9][0-9]{2,3})")


def quiet() -> None:
    """Silence Lightning's hints about what is intended here."""
    for name in ("pytorch.utilities.rank_zero", "pytorch.accelerators.cuda", "fabric.utilities.rank_zero"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*sync_dist=True.*",
        ".*IterableDataset.*__len__.*",
        ".*`broadcast_buffers` is deprecated.*",
        ".*`srun` command is available.*",
        ".*LeafSpec.*is deprecated.*",
        "TensorFloat32 tensor cores .* available but not enabled.*",
    ):
        warnings.filterwarnings("ignore", message)


def rank() -> int:
    """This process's rank."""
    # Set by Lightning's launchers before any Trainer exists; Lightning itself need not be there for it.
    if (loaded := sys.modules.get("lightning.fabric.utilities.rank_zero")) is not None:
        return int(getattr(loaded.rank_zero_only, "rank", None) or 0)
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


class Terminal(Console):
    """A console that can be hushed, and that repeats what it says in a log file.

    Text is shown as it is: names of runs and files may hold Rich's markup or a terminal's own commands. Lines
    that were left to the terminal to wrap are wrapped between words on one, and never cut elsewhere; tables
    have frames on a terminal alone. A hushed one shows only what is said by `final`; the log gets everything.
    """

    def __init__(self, *, hushed: bool = False, log: LogFile | None = None) -> None:
        plain: dict[str, Any] = {"markup": False, "highlight": False}
        # Rich takes any size that the environment gives, and shows nothing where that is 0, or tables 1.
        said = {k: v for k, v in os.environ.items() if k not in _SIZE or _USABLE.fullmatch(v)}
        fixed = not sys.stdout.isatty() and "COLUMNS" not in said
        interactive = False if hushed else None
        super().__init__(width=WIDE if fixed else None, force_interactive=interactive, _environ=said, **plain)
        self.hushed = hushed
        self._log: Console | None = None
        if log is not None:
            self._log = Console(
                file=cast(Any, log), width=WIDE, color_system=None, force_terminal=False, **plain
            )

    @property
    def live(self) -> bool:
        """Whether something that moves can be drawn: on a terminal that is neither dumb nor hushed."""
        return self.is_terminal and not self.is_dumb_terminal and not self.hushed and not self.quiet

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as Rich does, without control characters in texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - Rich's signature
        """Make text as Rich does, without control characters, so that its width is right."""
        return super().render_str(harmless(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - Rich's signature
        """Print unless hushed; takes Rich's arguments."""
        self._say(objects, options, shown=not self.hushed)

    def final(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - Rich's signature
        """Print a command's result, even if hushed."""
        self._say(objects, options)

    def results(self, parts: Iterable[RenderableType]) -> None:
        """Print a command's results, lines and tables, even if hushed."""
        for part in parts:
            self.final(part, soft_wrap=isinstance(part, str | Text))

    def progress(self, line: str) -> None:
        """Print a line of progress, with the time of day where there is no terminal."""
        stamp = "" if self.is_terminal else f"{now()} "
        self._say((line,), {"soft_wrap": True}, shown=not self.hushed, stamp=stamp)

    def _say(
        self, objects: tuple[Any, ...], options: dict[str, Any], shown: bool = True, stamp: str = ""
    ) -> None:
        if self._log and not self.quiet and not all(isinstance(each, Control) for each in objects):
            self._log.print(*map(_unframed, objects), **options)
        if shown and self.is_terminal:
            super().print(*objects, **options | {"soft_wrap": False})
        elif shown:
            super().print(*([stamp + objects[0]] if stamp else map(_unframed, objects)), **options)


def _unframed(shown: Any) -> Any:  # noqa: ANN401 - what Rich prints
    """Tables without frames, which programs can read too; anything else unchanged."""
    if isinstance(shown, Group):
        return Group(*map(_unframed, shown.renderables))
    if not isinstance(shown, Table):
        return shown
    table = copy(shown)
    table.box = None
    return table


_current: Terminal | None = None


def shared_console() -> Terminal:
    """The console of this process, silent but on rank 0; progress bars and lines share it."""
    global _current
    if _current is None:
        _current = Terminal()
    _current.quiet = rank() != 0
    return _current


@contextmanager
def speaking(hushed: bool = False, log_file: Path | None = None, command: str = "") -> Iterator[Terminal]:
    """Give a command its console, copied into a log file; restore the previous one afterwards."""
    global _current
    before, stderr, began = _current, sys.stderr, time.monotonic()
    log = None if log_file is None else LogFile(log_file, rank())
    _current = Terminal(hushed=hushed, log=log)
    _current.quiet = rank() != 0
    if log is not None:
        log.write(f"$ {command}\n" if command and not rank() else "")
        sys.stderr = cast(Any, Tee(sys.stderr, log))
    try:
        yield _current
    finally:
        _current, sys.stderr = before, stderr
        if log is not None:
            log.write("" if rank() else f"ended after {time.monotonic() - began:.1f} s\n")
            log.close()
            if log.lost:
                print(f"warning: --log-file {log_file}: lines are missing: {log.lost}", file=sys.stderr)


def from_make() -> bool:
    """Whether the command was given by a target of the Makefile."""
    return os.environ.get("DUALSCORE_VIA") == "make"


def command(name: str, *words: str, variables: Mapping[str, str] | None = None, options: str = "") -> str:
    """A command to type next: `make score CKPT=…` (`variables`) or `dualscore score …`."""
    given = ["make", name, *(f"{k}={_quoted(v)}" for k, v in (variables or {}).items())]
    typed = ["dualscore", name, *map(_quoted, words), *([options] if options else [])]
    return " ".join(given if from_make() else typed)


def _quoted(text: str) -> str:
    return text if "…" in text else shlex.quote(text)


def typable(message: str) -> str:
    """A message whose `dualscore COMMAND` can be typed: by the program's path where PATH lacks it."""
    program = Path(sys.executable).with_name("dualscore")
    if shutil.which("dualscore") or not program.exists():
        return message
    path = str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)
    return re.sub(r"\bdualscore (?=[a-z]+ )", f"{shlex.quote(path)} ", message)
