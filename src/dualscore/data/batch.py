"""Batches, and the memory that holds images on their way into them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualscore.data.epoch_plan import Piece
from dualscore.data.shard_file import BLOCK, ShardFile, positions, row_bytes
from dualscore.data.substitutes import RandomSubstitutes


class Batch(NamedTuple):
    """Images and which they are."""

    image: Tensor
    """uint8, shape (B, C, H, W), as stored."""
    position: Tensor
    """Place in the split, int64, shape (B,)."""
    ordinal: Tensor
    """Place among the images that are read, int64, shape (B,); the position where all are."""
    replaced: Tensor
    """Place in the split of the unreadable image that this one stands for, −1 for most, int64, shape (B,)."""


class Memory:
    """Rows for images on their way from shards to batches; unreadable ones are errors without substitutes."""

    def __init__(
        self, rows: int, shape: tuple[int, int, int], substitutes: RandomSubstitutes | None = None
    ) -> None:
        self.shape = shape
        self.image_bytes = int(np.prod(shape))
        self._substitutes = substitutes
        self._rows = np.empty((rows, row_bytes(self.image_bytes)), np.uint8)
        self._views = list(self._rows)
        # Where each row's image comes from: an open shard, or the piece of one that could not be read.
        self._origin: list[tuple[ShardFile | Piece, int]] = [None] * rows  # type: ignore[list-item]
        self._free = list(range(rows))

    def read(self, file: ShardFile, first: int, count: int) -> list[int]:
        """Read successive images of a shard; the rows that hold them."""
        cut = len(self._free) - count
        slots = self._free[cut:]
        views, origin = self._views, self._origin
        file.read(first, [views[slot] for slot in slots])
        del self._free[cut:]
        for number, slot in enumerate(slots, start=first):
            origin[slot] = (file, number)
        return slots

    def lose(self, piece: Piece, number: int) -> int:
        """Take a row for an image that could not be read; a batch will find its header damaged."""
        slot = self._free.pop()
        self._views[slot][:BLOCK] = 0
        self._origin[slot] = (piece, number)
        return slot

    def batch(self, slots: list[int], count: int = 1, total: int = 1, first: int = 0) -> Batch:
        """Copy rows into a batch and free them; `count` of `total` images from `first` on were chosen."""
        headers, images = self._rows[:, :BLOCK], self._rows[:, BLOCK : BLOCK + self.image_bytes]
        position, faults = positions(headers[slots], self.image_bytes)
        replaced = np.full(len(slots), -1, np.int64)
        if faults.any():
            for place in faults.nonzero()[0]:
                replaced[place] = self._replace(slots[place], int(faults[place]))
            position, _ = positions(headers[slots], self.image_bytes)
        # Without the headers between them: a copy to a GPU would wait for images that lie apart.
        pixels = torch.from_numpy(images[slots])
        self._free += slots
        places = torch.from_numpy(position)
        return Batch(
            pixels.view(-1, *self.shape),
            places,
            (places - first) * count // total,
            torch.from_numpy(replaced),
        )

    def _replace(self, slot: int, fault: int) -> int:
        origin, number = self._origin[slot]
        if self._substitutes is None:
            assert isinstance(origin, ShardFile)  # what could not be read at all was an error before
            raise origin.wrong(number, fault)
        return self._substitutes.fill(self._views[slot], origin.shard, number)
