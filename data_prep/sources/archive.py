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
                refuse_bomb(self, archive.getinfo(self.member))
                yield stack.enter_context(archive.open(self.member))
            else:
                tar = stack.enter_context(tarfile.open(self.path))
                member = tar.extractfile(self.member)
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


def refuse_bomb(label: object, member: zipfile.ZipInfo) -> None:
    """Refuse a member that unpacks to far more than photographs ever do, as a few bytes can to gigabytes.

    Args:
        label: how to name it in errors.
        member: what the archive says of it.

    Raises:
        DataError: if it is refused.
    """
    if member.file_size > SMALL_BYTES and member.file_size > MOST_RATIO * member.compress_size:
        raise DataError(
            f"{label} is refused: {member.compress_size:,} bytes that unpack to {member.file_size:,}; "
            "download the official archive again"
        )


def forget_members(tar: tarfile.TarFile) -> None:
    """Drop the list that tarfile keeps of all entries met: of a million small images it would not fit."""
    tar.members = []  # type: ignore[attr-defined]


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
            return [FileRef(path, item.name) for item in tar if item.isfile()]
