"""Files that are whole or absent, and what they are known by."""

import hashlib
import os
from pathlib import Path


def write_aside(path: Path, content: bytes, flush: bool = True) -> None:
    """Write a file so that it is whole or absent: aside, then renamed; `flush` outlives a power cut."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def write_changed(path: Path, text: str) -> None:
    """Write JSON aside, unless the file says so already: its folder may be one to read only.

    Bytes of a file's name that are no text become JSON's escapes, which are read as the same name.
    """
    content = text.encode(errors="backslashreplace")
    if not (path.is_file() and path.read_bytes() == content):
        write_aside(path, content)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
