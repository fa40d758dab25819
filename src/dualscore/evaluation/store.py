"""What was measured of each image, kept on disk as it comes, so that an interrupted evaluation goes on.

A stage's folder holds `identity.json`, what decides its figures, and parts `RANK-NUMBER.npz`, each with rows
of named figures and the images' positions. Nothing in them is ever executed.
"""

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualscore.shards import write_aside

Rows = dict[str, Tensor]
"""Named figures of n images in float64, each of shape (n,) or (n, m); `position` (int64) says of which."""

SECONDS_A_PART = 10.0


class RowStore:
    """The rows of one stage.

    Args:
        folder: the stage's folder.
        identity: what decides the figures; rows measured under another identity are deleted.
        rank: this process.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], rank: int) -> None:
        self.folder, self.identity, self.rank = folder, identity, rank
        self._pending: list[Rows] = []
        self._since = time.monotonic()

    def prepare(self) -> None:
        """Make the folder fit for this identity; to be called by one process, before the others read."""
        path = self.folder / "identity.json"
        wanted = json.dumps(self.identity, indent=1, sort_keys=True)
        try:
            same = path.read_text(encoding="utf-8") == wanted
        except OSError:
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_aside(path, wanted.encode())

    def read(self) -> Rows:
        """All rows of all processes in the order of positions, each image once; empty if there are none."""
        parts = []
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as content:
                parts.append({name: torch.from_numpy(content[name]) for name in content.files})
        if not parts:
            return {}
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        position, first = np.unique(rows["position"].numpy(), return_index=True)
        del position
        return {name: values[torch.from_numpy(first)] for name, values in rows.items()}

    def add(self, rows: Rows) -> None:
        """Add a batch's rows; written at intervals."""
        self._pending.append({name: _plain(values) for name, values in rows.items()})
        if time.monotonic() - self._since > SECONDS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write what was added, whole or not at all."""
        if self._pending:
            names = self._pending[0]
            merged = {name: np.concatenate([rows[name].numpy() for rows in self._pending]) for name in names}
            buffer = io.BytesIO()
            np.savez(buffer, **merged)  # type: ignore[arg-type]
            number = len(list(self.folder.glob(f"{self.rank:04d}-*.npz")))
            write_aside(self.folder / f"{self.rank:04d}-{number:06d}.npz", buffer.getvalue())
            self._pending = []
        self._since = time.monotonic()


def _plain(values: Tensor) -> Tensor:
    values = values.detach().cpu()
    return values if values.dtype == torch.int64 else values.double()


def joined(one: Rows, other: Rows) -> tuple[Tensor, Tensor]:
    """Indices into two tables of the images that both hold.

    Args:
        one: a table.
        other: another.

    Returns:
        Index tensors of equal length, in the order of positions.
    """
    _, a, b = np.intersect1d(one["position"].numpy(), other["position"].numpy(), return_indices=True)
    return torch.from_numpy(a), torch.from_numpy(b)
