"""Pictures into stacks of bits: every batch is decoded before it counts; what fails is stored as it is."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dualscore.coding import BitsBack, OutOfRangeError, Stack, lent
from dualscore.compression.coders import Coders
from dualscore.compression.container import (
    VALUES_A_SEGMENT,
    CodedPicture,
    Contents,
    Segment,
    checksum,
    tiles_in,
)
from dualscore.compression.tiles import BATCH, Tile, alike, cut


class Given(NamedTuple):
    """A picture that is to be coded."""

    name: str
    model: str  # its name
    rgb: bool  # whether it comes back with three channels
    pixels: NDArray[np.uint8]  # (C, H, W), as its model takes them


@dataclass
class Costs:
    """Bits of pictures, summed, and how many numbers these have."""

    dimensions: int = 0
    uncoded: int = 0  # of them those that were stored as they are
    nats: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # of what was coded, as in `Parts`
    coded: int = 0  # bits of it on the stacks, less those that were there
    borrowed: int = 0


class Encoder:
    """Codes pictures one after another.

    Args:
        contents: what the file says, which is completed.
        prepare: the code of a model, told its name and pictures (C, H, W) that it is to code; the model
            joins `contents`.
    """

    def __init__(self, contents: Contents, prepare: Callable[[str, list[NDArray[np.uint8]]], Coders]) -> None:
        self.contents, self.prepare = contents, prepare
        self.coders: list[Coders] = []
        self.numbers: dict[str, int] = {}
        self.stacks: list[NDArray[np.uint32]] = []
        self.raw: list[bytes] = []
        self.costs = Costs()

    def all(self, pictures: Iterable[Given], advance: Callable[[int], None]) -> Iterator[Given]:
        """Code pictures, and pass them on when they are; `advance` is told of numbers that are done."""
        held: list[Given] = []
        values = 0
        for picture in pictures:
            held.append(picture)
            values += picture.pixels.size
            if values >= VALUES_A_SEGMENT:
                self._segment(held, advance)
                yield from held
                held, values = [], 0
        if held:
            self._segment(held, advance)
            yield from held

    def _segment(self, pictures: list[Given], advance: Callable[[int], None]) -> None:
        first = len(self.contents.pictures)
        for name in dict.fromkeys(picture.model for picture in pictures):
            if name not in self.numbers:
                self.numbers[name] = len(self.coders)
                own = [picture.pixels for picture in pictures if picture.model == name]
                self.coders.append(self.prepare(name, own))
        for picture in pictures:
            height, width = picture.pixels.shape[1:]
            number, digest = self.numbers[picture.model], checksum(picture.pixels)
            self.contents.pictures.append(
                CodedPicture(picture.name, number, picture.rgb, height, width, digest)
            )
        tiles = [tile for i in range(len(pictures)) for tile in tiles_in(self.contents, first + i)]
        borrowed = max(_to_borrow(self._coder(tile), 1) for tile in tiles)
        stack, sizes = Stack(lent(borrowed)), []
        for run in alike(tiles):
            coder = self._coder(run[0])
            while run:
                # No more at once than what is there can be lent to: an empty stack draws nothing.
                count = BATCH
                while count > 1 and 32 * _to_borrow(coder, count) > stack.bits:
                    count -= 1
                batch, run = run[:count], run[count:]
                stack = self._batch(
                    stack, coder, batch, [pictures[tile.image - first].pixels for tile in batch]
                )
                sizes.append(len(batch))
                advance(len(batch) * coder.dimension)
        words = stack.words()
        self.costs.borrowed += 32 * borrowed
        self.stacks.append(words)
        self.contents.segments.append(Segment(len(pictures), len(words), sizes))

    def _coder(self, tile: Tile) -> BitsBack:
        return self.coders[tile.model].of(tile.height, tile.width)

    def _batch(
        self, stack: Stack, coder: BitsBack, batch: list[Tile], pictures: list[NDArray[np.uint8]]
    ) -> Stack:
        """The stack with a batch's tiles on it; those that fail are put among the raw ones."""
        pixels = [cut(picture, tile) for picture, tile in zip(pictures, batch, strict=True)]
        before, words = stack.bits, stack.words()
        keep = list(range(len(batch)))
        costs = self.costs
        values = [_values(picture, tile) for picture, tile in zip(pictures, batch, strict=True)]
        costs.dimensions += sum(values)
        while keep:
            images = torch.from_numpy(np.stack([pixels[place] for place in keep]))
            trial = Stack(words)
            try:
                parts = coder.push(trial, images)
            except OutOfRangeError as error:
                failed = error.images
            else:
                check = trial.copy()
                back = coder.pop(check, len(keep))
                wrong = (back != images).flatten(1).any(dim=1).nonzero().flatten().tolist()
                if not wrong and check.holds(words):
                    costs.coded += trial.bits - before
                    costs.nats += np.array([float(part.sum()) for part in parts])
                    return trial
                failed = wrong or list(range(len(keep)))
            for place in sorted(keep[place] for place in failed):
                self.contents.raw.append((batch[place].image, batch[place].place))
                self.raw.append(pixels[place].tobytes())
                costs.uncoded += values[place]
            keep = [place for i, place in enumerate(keep) if i not in set(failed)]
        return Stack(words)


def _values(picture: NDArray[np.uint8], tile: Tile) -> int:
    """How many numbers of a picture (C, H, W) are in a tile."""
    height = min(picture.shape[1], tile.top + tile.height) - tile.top
    width = min(picture.shape[2], tile.left + tile.width) - tile.left
    return int(len(picture) * height * width)


def _to_borrow(coder: BitsBack, count: int) -> int:
    """Words that a batch pops before it pushes as much: entropies of k_0 and k_1."""
    levels = coder.levels
    bins = (math.sqrt(levels.t0) / levels.deltas[0], math.sqrt(levels.grown[1]) / levels.deltas[1])
    bits = sum(math.log2(deviation * math.sqrt(2 * math.pi * math.e)) for deviation in bins)
    return math.ceil(1.05 * bits * count * coder.dimension / 32) + 16
