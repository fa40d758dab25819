"""Where a data set is: a folder, or a place that its files are fetched from into a cache."""

import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dualscore.data.photograph_numbers import HEADER_BYTES
from dualscore.data.shards import MANIFEST_FILE, Manifest, Shard
from dualscore.data.transfer import Address, is_remote
from dualscore.errors import SourceError
from dualscore.files.aside import write_aside

MOST_MANIFEST_BYTES = 2**26
_PREFIX = "remote-"  # whatever else lies beside is never touched


class RemoteFolder:
    """A data set elsewhere, whose files are fetched when they are needed into a cache of bounded size.

    The manifest is fetched anew by each process that starts; the rest once. The cached files of a data set
    form a folder like any other, named after the manifest's checksum, so that a data set that changed at
    its place is never mixed with what it was.

    Any number of processes share a cache. A shard's file is locked (shared) as long as it is open, so that
    the least recently used one that no process reads can be found and deleted. A second lock for each shard
    lets one process fetch it while others wait. `gigabytes`, of 10⁹ bytes, bound the shards of all data sets.
    """

    def __init__(self, address: Address, cache: Path, gigabytes: float) -> None:
        self.address, self.cache, self.gigabytes = address, cache, gigabytes
        raw = self._fetch(MANIFEST_FILE, MOST_MANIFEST_BYTES)
        self.manifest = Manifest.parse(raw, f"{address}/{MANIFEST_FILE}")
        self.folder = cache / f"{_PREFIX}{hashlib.sha256(raw).hexdigest()[:16]}"
        with self._writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / MANIFEST_FILE).exists():
                write_aside(self.folder / MANIFEST_FILE, raw)
            self._keep_files()

    def __str__(self) -> str:
        return str(self.address)

    def check_room(self, shards_at_once: int) -> None:
        """Refuse a cache that cannot hold as many shards as are read at once; SourceError says why."""
        sizes = [shard.bytes for split in self.manifest.splits.values() for shard in split.shards]
        needed = sum(sorted(sizes)[-shards_at_once:])
        if needed > self.gigabytes * 1e9:
            raise SourceError(
                f"data.cache_gb={self.gigabytes:g} is too little: up to {shards_at_once} shards of "
                f"{self} are read at once, {needed / 1e9:.3g} GB; raise it, or lower data.streams or "
                "data.workers"
            )

    def open(self, shard: Shard) -> int:
        """Open a shard for reading, fetched first if it is missing or cut short; the file's descriptor."""
        path = self.folder / shard.file
        with self._writing(path):
            try:
                with _locked(path.with_name(f".{path.name}.lock")):
                    if (descriptor := _open_whole(path, shard.bytes)) is not None:
                        return descriptor
                    path.unlink(missing_ok=True)
                    return self._fetch_shard(shard, path)
            except OSError as error:
                # Where nothing can be written, what is there can still be read.
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                if (descriptor := _open_whole(path, shard.bytes)) is None:
                    raise
                return descriptor

    def _fetch_shard(self, shard: Shard, path: Path) -> int:
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)  # of a process that was killed: this one has the shard's lock
        with _locked(self.cache / ".lock"):
            self._make_room(shard)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.ftruncate(descriptor, shard.bytes)  # counts from now on, for those who look for room
        try:
            with os.fdopen(os.dup(descriptor), "r+b") as sink:
                self.address.fetch(shard.file, sink, shard.bytes, shard.bytes, shard.sha256)
                sink.flush()
                os.fsync(descriptor)
            os.replace(part, path)
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        return descriptor

    def _make_room(self, shard: Shard) -> None:
        """Delete the least recently used shards that no process reads until this one fits."""
        found = []
        for path in self.cache.glob(f"{_PREFIX}*/*"):
            if path.suffix in (".tar", ".part"):
                with suppress(FileNotFoundError):  # another process deletes its own
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) + shard.bytes - self.gigabytes * 1e9
        for _, size, path in sorted(found):
            if excess > 0 and _delete_unused(path):
                excess -= size
        if excess > 0:
            used = (excess - shard.bytes) / 1e9 + self.gigabytes
            raise SourceError(
                f"{self.cache}: no room for {shard.file} ({shard.bytes / 1e9:.3g} GB): {used:.3g} GB of "
                f"data.cache_gb={self.gigabytes:g} are being read; raise it, or lower data.streams or "
                "data.workers"
            )

    def _keep_files(self) -> None:
        """Fetch the files beside the shards that the manifest names."""
        statistics, (channels, height, width) = self.manifest.statistics, self.manifest.image_shape
        most = 8 * channels**2 * height * width + HEADER_BYTES
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

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Say which setting names the cache where it cannot be written."""
        try:
            yield
        except OSError as error:
            raise SourceError(f"{path}: cannot be kept ({error.strerror}); see data.cache") from None


Source = Path | RemoteFolder


def find(path: str, cache: str, cache_gb: float, hint: str | None = None) -> tuple[Source, Manifest]:
    """Find a data set in a folder, or as `Address` says, and check what can be checked without its shards."""
    if not is_remote(path):
        return Path(path), Manifest.load(path, hint)
    source = RemoteFolder(Address(path), Path(cache), cache_gb)
    return source, source.manifest


def open_shard(source: Source, shard: Shard) -> int:
    """Open a shard for reading; the file's descriptor."""
    if isinstance(source, RemoteFolder):
        return source.open(shard)
    return os.open(source / shard.file, os.O_RDONLY | os.O_CLOEXEC)


def local_folder(source: Source) -> Path:
    """The folder that holds a source's manifest, spectrum and photographs' numbers."""
    return source.folder if isinstance(source, RemoteFolder) else source


def _open_whole(path: Path, size: int) -> int | None:
    """Open a file for reading, which keeps it from being deleted, if it is there and of this size."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size == size:
            with suppress(OSError):  # another user's file, or one that cannot be written
                os.utime(descriptor)  # used now
            return descriptor
        os.close(descriptor)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock, and hold it; it ends with the process, too."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _delete_unused(path: Path) -> bool:
    """Delete a file that no process has open; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
