"""Checkpoint files: zip archives, which may claim more than they hold, and their checksums."""

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path

from dualscore.errors import CheckpointError

# Of RuntimeError, NotImplementedError and RecursionError are kinds; of LookupError, KeyError and IndexError.
DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What torch and Python raise when bytes of a file are flipped."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_bombs(path: Path) -> None:
    """Refuse a checkpoint whose parts are longer, unpacked, than the file: torch never compresses them."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, LookupError, NotImplementedError, struct.error, zipfile.BadZipFile):
        return
    if unpacked > (size := path.stat().st_size):
        raise CheckpointError(
            f"{path}: refused: its {size:,} bytes unpack to {unpacked:,}, as no checkpoint's do"
        )
