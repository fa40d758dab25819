"""Stacks of bits into pictures, each compared with its checksum: what is not the same is never given."""

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualscore.coding import Stack
from dualscore.compression.coders import Coders
from dualscore.compression.container import CodedPicture, Contents, Segment, checksum, tiles_in
from dualscore.compression.tiles import alike, lay

_DAMAGED = "the bits that hold it are not as they were written"
Raw = dict[tuple[int, int], bytes]


class Restored(NamedTuple):
    """A picture, or why there is none."""

    picture: CodedPicture
    pixels: NDArray[np.uint8] | None  # (C, H, W)
    problem: str = ""


def raw_tiles(contents: Contents, content: bytes | None) -> Raw | None:
    """The tiles that were not coded, by picture and place; None where their bytes are damaged."""
    if content is None:
        return None
    found, start = Raw(), 0
    for image, places in groupby(contents.raw, lambda one: one[0]):
        tiles = tiles_in(contents, image)
        channels = contents.models[contents.pictures[image].model].channels
        for _, place in places:
            if place >= len(tiles):
                return None
            length = channels * tiles[place].height * tiles[place].width
            found[image, place] = content[start : start + length]
            start += length
    return found if start == len(content) else None


def restore(
    contents: Contents, coders: list[Coders], stacks: list[NDArray[np.uint32] | None], raw: Raw | None
) -> Iterator[Restored]:
    """All pictures of a file, the last of each stack first."""
    for segment, words in zip(contents.segments, stacks, strict=True):
        numbers = range(segment.first, segment.first + segment.pictures)
        if words is None:
            yield from (Restored(contents.pictures[i], None, _DAMAGED) for i in numbers)
        else:
            yield from _segment(contents, coders, segment, words, raw)


def _segment(
    contents: Contents, coders: list[Coders], segment: Segment, words: NDArray[np.uint32], raw: Raw | None
) -> Iterator[Restored]:
    numbers = range(segment.first, segment.first + segment.pictures)
    not_coded = set(contents.raw)
    stack = Stack(words)
    tiles = [tile for i in numbers for tile in tiles_in(contents, i)]
    waiting = Counter(tile.image for tile in tiles)
    begun: dict[int, NDArray[np.uint8]] = {}
    ends = [0, *accumulate(segment.batches)]
    parts = [tiles[start:end] for start, end in pairwise(ends)]
    if ends[-1] != len(tiles) or not all(len([*alike(part)]) == 1 for part in parts):
        yield from (Restored(contents.pictures[i], None, _DAMAGED) for i in numbers)
        return
    for batch in reversed(parts):
        coded = [tile for tile in batch if (tile.image, tile.place) not in not_coded]
        coder = coders[batch[0].model].of(batch[0].height, batch[0].width)
        found = iter(coder.pop(stack, len(coded)).numpy() if coded else ())
        for tile in batch:
            picture = contents.pictures[tile.image]
            channels = contents.models[picture.model].channels
            shape = (channels, picture.height, picture.width)
            pixels = begun.setdefault(tile.image, np.zeros(shape, np.uint8))
            if (tile.image, tile.place) not in not_coded:
                lay(pixels, tile, next(found))
            elif raw is not None:
                content = np.frombuffer(raw[tile.image, tile.place], np.uint8)
                lay(pixels, tile, content.reshape(channels, tile.height, tile.width))
            waiting[tile.image] -= 1
            if not waiting[tile.image]:
                yield _checked(picture, begun.pop(tile.image))


def _checked(picture: CodedPicture, pixels: NDArray[np.uint8]) -> Restored:
    if checksum(pixels) != picture.checksum:
        return Restored(picture, None, "comes out as another picture than went in: its checksum differs")
    return Restored(picture, pixels)
