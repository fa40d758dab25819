"""Shards kept on disk: fetched once, shared by any number of processes, within a bound.

A shard's file is locked (shared) as long as it is open, so that the least recently used one that no process
reads can be found and deleted. A second lock for each shard lets one process fetch it while others wait.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dualscore.errors import SourceError

_PREFIX = "remote-"  # whatever else lies beside is never touched


class ShardCache:
    """A bounded folder of shards.

    Args:
        root: the folder of all cached data sets.
        gigabytes: how much all of them may take, in 10⁹ bytes.
    """

    def __init__(self, root: Path, gigabytes: float) -> None:
        self.root, self.gigabytes = root, gigabytes
        self.limit = int(gigabytes * 1e9)

    def folder(self, key: str) -> Path:
        """Where a data set's files are, made if need be."""
        folder = self.root / f"{_PREFIX}{key}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SourceError(f"{folder}: cannot be made ({error.strerror}); see data.cache") from None
        return folder

    def open(self, path: Path, size: int, fetch: Callable[[BinaryIO], None]) -> int:
        """Open a shard that may have to be fetched.

        Args:
            path: its file, in a folder of this cache.
            size: its bytes; a file of another size is damaged, and fetched again.
            fetch: writes it, checked, or raises.

        Returns:
            Its descriptor; the file stays until this is closed.

        Raises:
            SourceError: if there is no room.
        """
        try:
            with _locked(path.with_name(f".{path.name}.lock")):
                descriptor = _open_whole(path, size)
                return self._fetch(path, size, fetch) if descriptor is None else descriptor
        except OSError as error:
            raise SourceError(f"{path}: cannot be kept ({error.strerror}); see data.cache") from None

    def _fetch(self, path: Path, size: int, fetch: Callable[[BinaryIO], None]) -> int:
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)  # of a process that was killed: this one has the shard's lock
        with _locked(self.root / ".lock"):
            self._make_room(size, path.name)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.ftruncate(descriptor, size)  # counts from now on, for those who look for room
        try:
            with os.fdopen(os.dup(descriptor), "r+b") as sink:
                fetch(sink)
                sink.flush()
                os.fsync(descriptor)
            os.replace(part, path)
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        return descriptor

    def _make_room(self, size: int, name: str) -> None:
        found = []
        for path in self.root.glob(f"{_PREFIX}*/*"):
            if path.suffix in (".tar", ".part"):
                with suppress(FileNotFoundError):  # another process deletes its own
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(held for _, held, _ in found)
        for _, held, path in sorted(found):
            if total + size <= self.limit:
                return
            if _delete_unused(path):
                total -= held
        if total + size > self.limit:
            raise SourceError(
                f"{self.root}: no room for {name} ({size / 1e9:.3g} GB): {total / 1e9:.3g} GB of "
                f"data.cache_gb={self.gigabytes:g} are being read; raise it, or lower data.streams or "
                "data.workers"
            )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock, and hold it; it ends with the process, too."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_whole(path: Path, size: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    with suppress(PermissionError):  # another user's file
        os.utime(descriptor)  # used now
    return descriptor


def _delete_unused(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
