"""The one walk over folders of pictures: whatever is not read is named, and links end."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dualscore.files.plain_text import printable

COMMON = "png, jpg, webp, avif, tif, gif and what else Pillow opens"
"""What counts as a picture, for messages."""
NO_PHOTOGRAPHS = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS", "PDF"}
"""Formats of Pillow's that hold programs, films or tables, or only name another program."""
OPENED_AS = {"MPO": "JPEG"}
"""Formats that Pillow opens by another's opener."""
UNDECODABLE = (
    ".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jxr", ".jp2", ".svg",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
)  # fmt: skip
"""Pictures that are named where Pillow cannot open them; where it can, they are pictures as others."""


RESULTS = {"scores.csv", "failures.csv"}
"""What a folder holds that images were scored into; then `DRAWN` are no photographs."""
DRAWN = {"maps", "sheet.png"}
ENDINGS_SHOWN = 5
ALREADY = "leads to a folder that is read already"


class Entry(NamedTuple):
    """Something found: a picture, or with a problem what is left out."""

    path: Path
    problem: str | None = None


@cache
def suffixes() -> frozenset[str]:
    """Endings of the pictures that this Pillow opens, with a dot and in small letters."""
    endings = Image.registered_extensions()  # loads every plugin
    return frozenset(
        ending
        for ending, kind in endings.items()
        if OPENED_AS.get(kind, kind) in Image.OPEN and kind not in NO_PHOTOGRAPHS
    )


def is_picture(name: str) -> bool:
    """Whether a file in a folder counts as a picture, by its name."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes()


def trouble(path: Path) -> str | None:
    """Why a path is no file that can be read without waiting, or None."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return "is a link that leads to no file"
        return f"cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    return (
        "is a folder, not a file" if stat.S_ISDIR(mode) else "is not a file but a pipe, a socket or a device"
    )


def not_the_files(error: Exception) -> None:
    """Raise what is no fault of a file's: where too many are open, sound ones would be left out."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise error


def walk(
    root: Path,
    left_out: Path | None = None,
    wanted: Callable[[str], bool] = is_picture,
    others: Counter[str] | None = None,
) -> Iterator[Entry]:
    """Every wanted file below a folder, and what is left out, in the order of names; linked folders last.

    What is hidden, and other files by their names, are passed over, the latter counted by their endings in
    `others`; so are the folder `left_out`, and what scoring drew. A folder that several links lead to is read
    once, and the other links are named.
    """
    hidden = None if left_out is None else os.path.realpath(left_out)
    top = os.path.realpath(root)
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            if (key := (status.st_dev, status.st_ino)) in seen or _holds(os.path.realpath(folder), top):
                yield Entry(folder, ALREADY)
                continue
            seen.add(key)
            with os.scandir(folder) as listing:
                names = sorted((e.name, e.is_symlink()) for e in listing if not e.name.startswith("."))
        except OSError as error:
            not_the_files(error)
            yield Entry(folder, f"cannot be read: {error.strerror}")
            continue
        if {name for name, _ in names} >= RESULTS:
            names = [(name, linked) for name, linked in names if name not in DRAWN]
        below = list[Path]()
        for name, linked in names:
            path = folder / name
            if os.path.isdir(path):
                if hidden is None or os.path.realpath(path) != hidden:
                    (links if linked else below).append(path)
            elif (entry := _entry(path, linked, wanted)) is not None:
                yield entry
            elif others is not None:
                others[path.suffix.lower()] += 1
        folders += reversed(below)


def passed_over(others: Mapping[str, int]) -> list[str]:
    """A line on files that are no pictures by their names, if there were any."""
    if not others:
        return []
    count, endings = sum(others.values()), [ending or "no ending" for ending in sorted(others)]
    more = ", …" if len(endings) > ENDINGS_SHOWN else ""
    what = "1 file that is no picture" if count == 1 else f"{count:,} files that are no pictures"
    return [f"passed over: {what} by name ({printable(', '.join(endings[:ENDINGS_SHOWN]))}{more})"]


def _holds(folder: str, top: str) -> bool:
    """Whether a linked folder holds the one that is read."""
    return folder != top and os.path.commonpath([folder, top]) == folder


def _entry(path: Path, linked: bool, wanted: Callable[[str], bool]) -> Entry | None:
    """A file as one that is wanted or as a problem; None if its name is another."""
    if wanted(path.name) or (linked and not path.exists()):
        return Entry(path, trouble(path))
    ending = path.suffix.lower()
    if ending in UNDECODABLE:
        what = f"is a picture of a kind ({ending}) that is not read: convert it, to png for example"
        return Entry(path, what)
    return None
