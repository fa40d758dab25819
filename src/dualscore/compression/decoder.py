"""Stacks of bits into pictures, each compared with its checksum: what is not the same is never given."""

import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, islice, pairwise, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualscore.coding import Stack
from dualscore.compression.coders import Coders
from dualscore.compression.container import CodedPicture, Contents, Segment, checksum, tiles_in
from dualscore.compression.tiles import Tile, alike, lay
from dualscore.errors import CodingError

_DAMAGED = "the bits that hold it are not as they were written"
Raw = dict[tuple[int, int], bytes]


class Restored(NamedTuple):
    """A picture, or why there is none."""

    picture: CodedPicture
    pixels: NDArray[np.uint8] | None  # (C, H, W)
    problem: str = ""


class RawTiles:
    """Tiles that were not coded, inflated one stack's after another's.

    Args:
        contents: what the file says.
        deflated: their bytes; None where they are damaged.
    """

    def __init__(self, contents: Contents, deflated: bytes | None) -> None:
        self.contents, self._left, self._place = contents, deflated, 0
        self._engine = zlib.decompressobj()

    def of(self, tiles: list[Tile]) -> Raw:
        """Those among a stack's tiles; nothing where they cannot be read, which checksums tell."""
        by_place = {(tile.image, tile.place): tile for tile in tiles}
        keys = [*takewhile(by_place.__contains__, islice(self.contents.raw, self._place, None))]
        self._place += len(keys)
        models = self.contents.models
        own = [by_place[key] for key in keys]
        lengths = [models[tile.model].channels * tile.height * tile.width for tile in own]
        content = self._next(sum(lengths))
        ends = [*accumulate(lengths, initial=0)]
        places = zip(keys, pairwise(ends), strict=True)
        return {key: content[start:end] for key, (start, end) in places if content}

    def _next(self, length: int) -> bytes:
        """So many bytes, or none."""
        if not self._left or not length:
            return b""
        try:
            content = self._engine.decompress(self._left, length)
        except zlib.error:
            content = b""
        self._left = self._engine.unconsumed_tail if len(content) == length else None
        return content if self._left is not None else b""


def restore(
    contents: Contents, coders: list[Coders], stacks: list[NDArray[np.uint32] | None], raw: RawTiles
) -> Iterator[Restored]:
    """All pictures of a file, the last of each stack first."""
    first, not_coded = 0, frozenset(contents.raw)
    for segment, words in zip(contents.segments, stacks, strict=True):
        numbers = range(first, first + segment.pictures)
        first += segment.pictures
        tiles = [tile for i in numbers for tile in tiles_in(contents, i)]
        own = raw.of(tiles)  # in any case: those of later stacks follow them
        missing = {contents.pictures[i].name: contents.pictures[i] for i in numbers}
        if words is not None:
            batches = _batches(segment, tiles)
            for restored in _decoded(contents, coders, batches, Stack(words), not_coded, own):
                del missing[restored.picture.name]
                yield restored
        yield from (Restored(picture, None, _DAMAGED) for picture in missing.values())


def _batches(segment: Segment, tiles: list[Tile]) -> list[list[Tile]]:
    """A stack's tiles as they were coded together; an empty list where the file contradicts itself."""
    ends = [0, *accumulate(segment.batches)]
    parts = [tiles[start:end] for start, end in pairwise(ends)]
    return parts if ends[-1] == len(tiles) and all(len([*alike(part)]) == 1 for part in parts) else []


def _decoded(
    contents: Contents,
    coders: list[Coders],
    batches: list[list[Tile]],
    stack: Stack,
    not_coded: frozenset[tuple[int, int]],
    raw: Raw,
) -> Iterator[Restored]:
    """Pictures of a stack as far as its bits can be read."""
    waiting = Counter(tile.image for batch in batches for tile in batch)
    begun: dict[int, NDArray[np.uint8]] = {}
    for batch in reversed(batches):
        coded = [tile for tile in batch if (tile.image, tile.place) not in not_coded]
        coder = coders[batch[0].model].of(batch[0].height, batch[0].width)
        try:
            found = iter(coder.pop(stack, len(coded)).numpy() if coded else ())
        except (CodingError, ValueError, OverflowError):  # bits that no encoder wrote
            return
        for tile in batch:
            picture = contents.pictures[tile.image]
            channels = contents.models[picture.model].channels
            shape = (channels, picture.height, picture.width)
            pixels = begun.setdefault(tile.image, np.zeros(shape, np.uint8))
            if (tile.image, tile.place) not in not_coded:
                lay(pixels, tile, next(found))
            elif (tile.image, tile.place) in raw:
                content = np.frombuffer(raw[tile.image, tile.place], np.uint8)
                lay(pixels, tile, content.reshape(channels, tile.height, tile.width))
            waiting[tile.image] -= 1
            if not waiting[tile.image]:
                yield _checked(picture, begun.pop(tile.image))


def _checked(picture: CodedPicture, pixels: NDArray[np.uint8]) -> Restored:
    if checksum(pixels) != picture.checksum:
        return Restored(picture, None, "comes out as another picture than went in: its checksum differs")
    return Restored(picture, pixels)
