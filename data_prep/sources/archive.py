"""Opens a file that may lie inside a zip or tar archive, without extracting it to disk."""

import errno
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dualscore.errors import DataError
from dualscore.files.tars import TAR_SUFFIXES
from dualscore.pictures.walk import ALREADY, not_the_files, walk

SMALL_BYTES = 2**20
NAMED = 5
"""Names of a folder that a message lists."""
MOST_RATIO = 100
"""Bytes that one of an archive may unpack to; of photographs 1 to 3."""
KINDS = {"zip": b"PK", "tar.gz": b"\x1f\x8b", "tar.bz2": b"BZh", "tar.xz": b"\xfd7zXZ", "web page": b"<"}
"""What files of a kind begin with."""
ENDINGS = {".zip": "zip", ".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz"}
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True)
class FileRef:
    """A file: ``path`` itself, or ``member`` of the archive at ``path``."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """Last part of the file's name."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open for reading; a damaged archive is a DataError, on opening or while reading."""
        with ExitStack() as stack, explained(self.path):
            if self.member is None:
                yield stack.enter_context(self.path.open("rb"))
            elif self.path.name.endswith(".zip"):
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                info = archive.getinfo(self.member)
                refuse_bomb(self, info.compress_size, info.file_size)
                yield stack.enter_context(archive.open(self.member))
            else:
                tar = stack.enter_context(tarfile.open(self.path))
                entry = tar.getmember(self.member)
                refuse_bomb(self, self.path.stat().st_size, entry.size)
                member = tar.extractfile(entry) if _is_plain(entry) else None
                if member is None:
                    raise DataError(f"{self} is not a plain file; download the archive again")
                yield stack.enter_context(member)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the many ways in which an archive or file can be damaged into one DataError."""
    try:
        yield
    except BROKEN as error:
        not_the_files(error)
        # tarfile tells about every compression it tried, a line each
        reason = next(iter(str(error).splitlines()), "it is cut off").rstrip(":")
        if isinstance(error, OSError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EISDIR,
            errno.ENOENT,
        ):
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
        said = next((kind for ending, kind in ENDINGS.items() if path.name.endswith(ending)), None)
        if said is not None and (kind := content_kind(path)) not in (None, said):
            way = "download it again" if kind == "web page" else f"rename it to end with .{kind}"
            what = f"it is a {kind} by its content, not a {said} as its name says"
            raise DataError(f"{path} cannot be read ({what}): {way}") from None
        raise DataError(f"{path} cannot be read ({reason}): download it again") from None


def content_kind(path: Path) -> str | None:
    """What a file is by its first bytes: one of KINDS, or `tar`; None if none of them."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if start[257:262] == b"ustar":
        return "tar"
    return next((kind for kind, sign in KINDS.items() if start.startswith(sign)), None)


def what_is_there(src: Path | None) -> str:
    """What a folder that is not as expected is or holds, for messages."""
    if src is None or not src.exists():
        return "nothing is there"
    if not src.is_dir():
        return f"it is a {content_kind(src) or 'file of another kind'}"
    names = sorted(name for name in os.listdir(src) if not name.startswith("."))
    more = ", …" if len(names) > NAMED else ""
    return f"it holds {', '.join(names[:NAMED])}{more}" if names else "it is empty"


def files_below(src: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Files with wanted names below a folder, sorted; DataError where one of them cannot be read."""
    found = []
    for path, problem in walk(src, wanted=wanted):
        if problem is None:
            found.append(path)
        elif problem != ALREADY and (wanted(path.name) or path.is_dir()):
            raise DataError(f"{path} {problem}: the data set would not be whole")
    return sorted(found)


def refuse_bomb(label: object, packed: int, unpacked: int) -> None:
    """Refuse a member that unpacks to far more than photographs ever do, as a few bytes can to gigabytes.

    Args:
        label: how to name it in errors.
        packed: bytes that it takes in the archive.
        unpacked: bytes that it says it has.

    Raises:
        DataError: if it is refused.
    """
    if unpacked > max(SMALL_BYTES, MOST_RATIO * packed):
        raise DataError(
            f"{label} is refused: {packed:,} bytes that unpack to {unpacked:,}; "
            "download the official archive again"
        )


def _is_plain(entry: tarfile.TarInfo) -> bool:
    """Whether an entry is a file with all of its bytes in the archive."""
    return entry.isfile() and not entry.issparse()


def is_archive(path: Path) -> bool:
    """Whether the name is one of an archive that can be looked into."""
    return path.name.endswith((".zip", *TAR_SUFFIXES))


def members(path: Path) -> list[FileRef]:
    """Plain files in a zip or tar archive, in archive order."""
    with explained(path):
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                return [FileRef(path, item.filename) for item in archive.infolist() if not item.is_dir()]
        with tarfile.open(path) as tar:
            return [FileRef(path, item.name) for item in tar if _is_plain(item)]
