"""Where a data set is: a folder, or a place that its files are fetched from into a cache."""

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dualscore.data.photograph_numbers import HEADER_BYTES
from dualscore.data.shards import MANIFEST_FILE, Manifest, Shard
from dualscore.data.transfer import Address, is_remote
from dualscore.errors import SourceError
from dualscore.files.aside import write_aside

MOST_MANIFEST_BYTES = 2**26
_PREFIX = "remote-"  # whatever else lies beside is never touched


class ShardCache:
    """A folder of shards, bounded in 10⁹ bytes: fetched once, shared by any number of processes.

    A shard's file is locked (shared) as long as it is open, so that the least recently used one that no
    process reads can be found and deleted. A second lock for each shard lets one process fetch it while
    others wait.
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
        """A descriptor that keeps a shard open, fetched first if it is missing or not `size` bytes long."""
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


class RemoteFolder:
    """A data set elsewhere, whose files are fetched into a cache when they are needed.

    The manifest is fetched anew by each process that starts; the rest once. The cached files of a data set
    form a folder like any other, named after the manifest's checksum, so that a data set that changed at
    its place is never mixed with what it was.
    """

    def __init__(self, address: Address, cache: ShardCache) -> None:
        self.address, self.cache = address, cache
        raw = self._fetch(MANIFEST_FILE, MOST_MANIFEST_BYTES)
        self.manifest = Manifest.parse(raw, f"{address}/{MANIFEST_FILE}")
        self.folder = cache.folder(hashlib.sha256(raw).hexdigest()[:16])
        try:
            if not (self.folder / MANIFEST_FILE).exists():
                write_aside(self.folder / MANIFEST_FILE, raw)
            self._keep_files()
        except OSError as error:
            raise SourceError(
                f"{self.folder}: cannot be written ({error.strerror}); see data.cache"
            ) from None

    def __str__(self) -> str:
        return str(self.address)

    def open(self, shard: Shard) -> int:
        """Open a shard for reading, fetched if need be; the file's descriptor."""
        fetch = partial(
            self.address.fetch, shard.file, most=shard.bytes, size=shard.bytes, sha256=shard.sha256
        )
        return self.cache.open(self.folder / shard.file, shard.bytes, fetch)

    def check_room(self, shards_at_once: int) -> None:
        """Refuse a cache that cannot hold as many shards as are read at once; SourceError says why."""
        sizes = [shard.bytes for split in self.manifest.splits.values() for shard in split.shards]
        needed = sum(sorted(sizes)[-shards_at_once:])
        if needed > self.cache.limit:
            raise SourceError(
                f"data.cache_gb={self.cache.gigabytes:g} is too little: up to {shards_at_once} shards of "
                f"{self} are read at once, {needed / 1e9:.3g} GB; raise it, or lower data.streams or "
                "data.workers"
            )

    def _keep_files(self) -> None:
        """Fetch the files beside the shards that the manifest names."""
        statistics, (channels, height, width) = self.manifest.statistics, self.manifest.image_shape
        most = 8 * channels**2 * height * width + 2**12  # with NumPy's header
        self._keep(statistics.spectrum_file, most, statistics.spectrum_sha256)
        photographs, images = self.manifest.photographs, self.manifest.images
        if photographs is not None and not photographs.each_image:
            # compression may lengthen what it cannot shorten, by less than this
            most = 5 * sum(images.values()) + 2 * HEADER_BYTES * len(images)
            self._keep(photographs.file, most, photographs.sha256)
            photographs.load(self.folder, images)

    def _keep(self, name: str, most: int, sha256: str) -> None:
        path = self.folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            write_aside(path, self._fetch(name, most, sha256))

    def _fetch(self, name: str, most: int, sha256: str | None = None) -> bytes:
        sink = io.BytesIO()
        self.address.fetch(name, sink, most, sha256=sha256)
        return sink.getvalue()


Source = Path | RemoteFolder


def find(path: str, cache: str, cache_gb: float, hint: str | None = None) -> tuple[Source, Manifest]:
    """Find a data set in a folder, or as `Address` says, and check what can be checked without its shards."""
    if not is_remote(path):
        return Path(path), Manifest.load(path, hint)
    source = RemoteFolder(Address(path), ShardCache(Path(cache), cache_gb))
    return source, source.manifest


def open_shard(source: Source, shard: Shard) -> int:
    """Open a shard for reading; the file's descriptor."""
    if isinstance(source, RemoteFolder):
        return source.open(shard)
    return os.open(source / shard.file, os.O_RDONLY | os.O_CLOEXEC)


def local_folder(source: Source) -> Path:
    """The folder that holds a source's manifest, spectrum and photographs' numbers."""
    return source.folder if isinstance(source, RemoteFolder) else source
