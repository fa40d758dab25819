"""Where shards are."""

import os
from pathlib import Path

from dualscore.shards import Shard

Source = Path


def open_shard(source: Source, shard: Shard) -> int:
    """Open a shard for reading; the file's descriptor."""
    return os.open(source / shard.file, os.O_RDONLY | os.O_CLOEXEC)
