"""Opens a file that may lie inside a zip or tar archive, without extracting it to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dualscore.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SMALL_BYTES = 2**20
MOST_RATIO = 100
"""Bytes that one of an archive may unpack to; of photographs 1 to 3."""
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
        # tarfile tells about every compression it tried, a line each
        reason = next(iter(str(error).splitlines()), "it is cut off").rstrip(":")
        raise DataError(f"{path} cannot be read ({reason}): download it again") from None


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


def forget_members(tar: tarfile.TarFile) -> None:
    """Drop the list that tarfile keeps of all entries met: of a million small images it would not fit."""
    tar.members = []  # type: ignore[attr-defined]


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
