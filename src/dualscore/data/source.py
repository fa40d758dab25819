"""Where a data set is: a folder, or a place that its files are fetched from."""

import hashlib
import io
import os
from functools import partial
from pathlib import Path

from dualscore.data.cache import ShardCache
from dualscore.data.photograph_numbers import HEADER_BYTES
from dualscore.data.shards import MANIFEST_FILE, Manifest, Shard
from dualscore.data.transfer import Address, is_remote
from dualscore.errors import SourceError
from dualscore.files.aside import write_aside

MOST_MANIFEST_BYTES = 2**26


class RemoteFolder:
    """A data set elsewhere, whose files are fetched into a cache when they are needed.

    The manifest is fetched anew by each process that starts; the rest once. The cached files of a data set
    form a folder like any other, named after the manifest's checksum, so that a data set that changed at
    its place is never mixed with what it was.

    Args:
        address: the place.
        cache: where files are kept.
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
        """Refuse a cache that cannot hold what is read at the same time.

        Args:
            shards_at_once: how many.

        Raises:
            SourceError: saying how much is needed.
        """
        sizes = [shard.bytes for split in self.manifest.splits.values() for shard in split.shards]
        needed = sum(sorted(sizes)[-shards_at_once:])
        if needed > self.cache.limit:
            raise SourceError(
                f"data.cache_gb={self.cache.gigabytes:g} is too little: up to {shards_at_once} shards of "
                f"{self} are read at once, {needed / 1e9:.3g} GB; raise it, or lower data.streams or "
                "data.workers"
            )

    def _keep_files(self) -> None:
        """Have the files beside the shards that the manifest names."""
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
    """Find a data set, and check what can be checked without reading its shards.

    Args:
        path: its folder, `http://HOST/FOLDER`, `https://…`, or `pipe:COMMAND {}`.
        cache: folder for the files of one that is not a folder.
        cache_gb: how much that may hold.
        hint: command that makes the data set, shown when there is none.

    Returns:
        The source of its shards, and its manifest.

    Raises:
        DataError: naming the file, or the place and why it cannot be reached.
    """
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
