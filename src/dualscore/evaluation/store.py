"""Rows on disk: each image's figures are kept as they come, so that an interrupted evaluation goes on.

A stage's folder, NAME-HASH, holds `identity.json`, what decides its figures, and parts `RANK-NUMBER.npz`,
each with rows of named figures and the images' positions. Nothing in them is ever executed.
"""

import hashlib
import io
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualscore.files.aside import write_aside, write_changed
from dualscore.files.typed_json import read_json
from dualscore.measuring.subject import Rows, plain_rows

DEFINITIONS = 2  # version of the figures' definitions; rows of other versions are measured anew
SECONDS_A_PART = 10.0


class RowStore:
    """The rows of one stage as this process, `rank`, sees them.

    The identity is what decides the figures; each has a folder of its own in `root`, that of all stages.
    """

    def __init__(self, root: Path, name: str, identity: dict[str, Any], rank: int) -> None:
        self.root, self.name, self.identity, self.rank = root, name, identity, rank
        text = json.dumps(identity, sort_keys=True)
        self.folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._pending: list[Rows] = []
        self._since = time.monotonic()

    def prepare(self) -> None:
        """Make the folder; to be called by one process, before the others read.

        Rows of other checkpoints are deleted, parts that cannot be read, and rows that hold a figure that is
        not finite: a fault of the machine must not be remembered.
        """
        for other in self.root.glob(f"{self.name}-*/identity.json"):
            if read_json(other).get("checkpoint") != self.identity.get("checkpoint"):
                shutil.rmtree(other.parent, ignore_errors=True)
        for path in self.folder.glob("*.npz"):
            if _read_part(path) is None:
                path.unlink()
        if not all(bool(values.isfinite().all()) for values in self.read().values()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_changed(self.folder / "identity.json", json.dumps(self.identity, indent=1, sort_keys=True))

    def read(self) -> Rows:
        """All rows of all processes in the order of positions, each image once; empty if there are none.

        Parts that cannot be read are as if they were not there.
        """
        found = [_read_part(path) for path in sorted(self.folder.glob("*.npz"))]
        rows = _stacked([part for part in found if part is not None])
        _, first = np.unique(rows.get("position", []), return_index=True)
        return {name: values[torch.from_numpy(first)] for name, values in rows.items()}

    def add(self, rows: Rows) -> None:
        """Add a batch's rows; written at intervals."""
        self._pending.append(plain_rows(rows))
        if time.monotonic() - self._since > SECONDS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write what was added, whole or not at all."""
        if self._pending:
            buffer = io.BytesIO()
            merged = {name: values.numpy() for name, values in _stacked(self._pending).items()}
            np.savez(buffer, **merged)  # type: ignore[arg-type]
            # Not how many there are: one may be lost, and a later one must not be written over.
            mine = self.folder.glob(f"{self.rank:04d}-{'[0-9]' * 6}.npz")
            number = max((int(path.stem[5:]) + 1 for path in mine), default=0)
            write_aside(self.folder / f"{self.rank:04d}-{number:06d}.npz", buffer.getvalue())
            self._pending = []
        self._since = time.monotonic()


def kept_rows(folder: str | Path, model: str = "") -> Callable[[str, dict[str, Any]], RowStore]:
    """Keep what `dualscore.measure` measures in a folder, so that the same call goes on where it stopped.

    Rows of other images, settings or answers of the denoiser are not taken for these. It is asked for some
    noisy images at every level; `model` may tell it from others besides, as a digest of its weights.
    """

    def stage(name: str, identity: dict[str, Any]) -> RowStore:
        of = {"definitions": DEFINITIONS, "checkpoint": f"{model} {identity['answers']}"}
        store = RowStore(Path(folder), name, identity | of, 0)
        store.prepare()
        return store

    return stage


def _stacked(parts: list[Rows]) -> Rows:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def _read_part(path: Path) -> Rows | None:
    """The rows of a part; None where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as content:
            part = {name: torch.from_numpy(content[name]) for name in content.files}
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None
    lengths = {values.shape[:1] for values in part.values()}
    return part if "position" in part and len(lengths) == 1 else None
