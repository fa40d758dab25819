"""Lossless codecs on the same pictures: each by itself where it is large, small ones in one mosaic."""

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from dualscore.errors import DataError
from dualscore.evaluation.codecs import CODECS, mosaic

_SMALL = 2**14
"""Pixels below which a picture's header would be unfair to a codec."""


class Rivals:
    """What codecs make of pictures."""

    def __init__(self) -> None:
        self.bytes = Counter[str]()
        self.missing: dict[str, str] = {}
        self.small: defaultdict[tuple[int, ...], list[NDArray[np.uint8]]] = defaultdict(list)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Take a picture (C, H, W)."""
        if pixels[0].size < _SMALL:
            self.small[pixels.shape].append(pixels)
        else:
            self._code(pixels[None])

    def bits_per_dim(self, dimensions: int) -> dict[str, float | str]:
        """By a codec's name: the files' bits for each of the pictures' numbers, or why it is not there."""
        for pictures in self.small.values():
            self._code(np.stack(pictures))
        self.small.clear()
        found: dict[str, float | str] = dict(self.missing)
        return found | {name: 8.0 * count / dimensions for name, count in self.bytes.items()}

    def _code(self, images: NDArray[np.uint8]) -> None:
        for name, (_, encode) in CODECS.items():
            if name in self.missing:
                continue
            try:
                self.bytes[name] += len(encode(mosaic(images)))
            except DataError as error:
                self.missing[name] = str(error)
                del self.bytes[name]
