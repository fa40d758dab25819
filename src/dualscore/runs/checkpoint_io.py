"""Checkpoints that are whole or absent, wherever the process is killed and however full the disk is."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dualscore.runs.folder import older


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes aside in the same folder, flushes to disk, then renames; what was there becomes an older one.

    Lightning's own writes to the system's temporary folder and moves, which across file systems is a copy
    over the last good checkpoint. Each record carries its CRC-32, which `read_checkpoint` looks at.

    Args:
        keep: how many checkpoints of the same name are kept: `last.ckpt`, `last-1.ckpt`, …
        warn: told when one cannot be written; training goes on with the old ones.
    """

    def __init__(self, keep: int, warn: Callable[[str], None]) -> None:
        self.keep, self.warn = keep, warn
        self.written = False
        """Whether the last attempt of this process succeeded."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ANN401, ARG002 - Lightning's signature
    ) -> None:
        """Save a checkpoint to a local path; a disk that does not take it is a warning."""
        path = Path(path)
        aside = path.with_name(f".{path.name}.tmp")
        self.written = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, aside)
            for age in range(self.keep - 1, 0, -1):
                if (younger := older(path, age - 1)).exists():
                    os.replace(younger, older(path, age))
            os.replace(aside, path)
            _flush_folder(path.parent)
        except OSError as error:
            self.warn(
                f"{path}: not written ({error.strerror or error}); training goes on and the one before is "
                "kept; make room, or what is learned from here on is lost when the run ends"
            )
            return
        finally:
            aside.unlink(missing_ok=True)
        self.written = True


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # what PyTorch makes of a failed write
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _flush_folder(folder: Path) -> None:
    """Make a renaming last beyond a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)
