"""Checkpoints that are whole or absent, wherever the process is killed."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes aside in the same folder, flushes to disk, then renames.

    Lightning's own writes to the system's temporary folder and moves, which across file systems is a copy
    over the last good checkpoint.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ANN401, ARG002 - Lightning's signature
    ) -> None:
        """Save a checkpoint to a local path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.tmp")
        with aside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
