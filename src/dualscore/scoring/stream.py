"""What every measurement of a stream of files does: refuse early, report what failed, show progress."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from dualscore.errors import ScoreError
from dualscore.files.plain_text import printable
from dualscore.noise import psnr
from dualscore.scoring import tables
from dualscore.scoring.files import Chunk
from dualscore.terminal import is_live
from dualscore.terminal.hints import option

PROBLEMS_SHOWN = 10
_NUMBERS = re.compile(r"\d+")
NOT_FINITE = "has an energy or a denoised image that is not finite"


@dataclass
class Problems:
    """Counts files that cannot be used, kind by kind, and tells of them at the end."""

    console: Console
    file: IO[str] | None = None
    """Of rows (file, reason), where they are kept."""
    count: int = 0
    first: str = ""
    """What was said of the first one."""
    kinds: dict[str, list[str | int]] = field(default_factory=dict)
    """How often each kind of reason came, and what was said the first time."""

    def add(self, problems: Sequence[tuple[str, str]]) -> None:
        """Report files, each with its reason."""
        if self.file is not None:
            tables.append(self.file, problems)
        for path, reason in problems:
            self.count += 1
            line = f"{printable(path)} {reason}"
            self.first = self.first or line
            kind = self.kinds.setdefault(_NUMBERS.sub("#", reason), [0, line])
            kind[0] = int(kind[0]) + 1

    def tell(self) -> None:
        """Say of each kind how many there were, and which was the first."""
        for number, (count, line) in enumerate(sorted(self.kinds.values(), key=lambda kind: -int(kind[0]))):
            if number == PROBLEMS_SHOWN:
                left = f"left out: images for {len(self.kinds) - number} more reasons"
                self.console.print(left, soft_wrap=True)
                return
            many = "" if count == 1 else f"{count:,} images; the first, "
            self.console.print(f"left out: {many}{line}", soft_wrap=True)


def usable(chunks: Iterator[Chunk], problems: Problems) -> Iterator[Chunk]:
    """The batches with an image in them; what failed is reported as it comes.

    Args:
        chunks: of a loader.
        problems: told of the files that could not be decoded.

    Yields:
        Batches of one image or more.

    Raises:
        ScoreError: if a loader process died.
    """
    try:
        for chunk in chunks:
            problems.add(chunk.failed)
            if chunk.paths:
                yield chunk
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ScoreError(
            "a loader process died, most often for want of memory: try a smaller --batch-size, or --workers 0"
        ) from error


def check_level(decibels: float, t_max: float) -> str:
    """Refuse a noise level `--psnr` in dB that a model trained up to t_max cannot denoise at; else say it."""
    # Beyond it an image and its noisy version are the same in single precision.
    lowest = psnr(t_max)
    if not lowest <= decibels <= 120.0:
        raise ScoreError(
            f"{option('--psnr ', 'PSNR=')}{decibels:g}: must be between {lowest:.4g} (the strongest noise in "
            "training) and 120 dB"
        )
    return f"the effective dimension at {decibels:g} dB"


def progress_bar(console: Console) -> Progress:
    """A count of images on a terminal, nothing elsewhere."""
    return Progress(
        TextColumn("{task.description} {task.completed:,} images"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not is_live(console),
    )
