"""One stream of shuffled training images; only what its shuffle buffer holds is in memory."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice
from random import Random

import webdataset

from dualscore.data.batch import Memory
from dualscore.data.epoch_plan import Piece
from dualscore.data.shard_file import ShardFile
from dualscore.data.shards import Shard
from dualscore.data.source import Source
from dualscore.errors import DataError, SourceError


class Lane:
    """The images of a lane in shuffled order; only what the shuffle buffer holds is in memory.

    Args:
        source: where the shards are.
        pieces: what the lane reads, in order.
        memory: where its images are kept.
        buffer: images held for shuffling.
        random: the shuffle's random numbers.
    """

    def __init__(
        self, source: Source, pieces: list[Piece], memory: Memory, buffer: int, random: Random
    ) -> None:
        self._source, self._pieces, self._memory = source, pieces, memory
        self._starts = [0, *accumulate(piece.stop - piece.start for piece in pieces)]
        self._shard: Shard | None = None
        self._open: ShardFile | None = None
        self._waiting: list[int] = []  # images of the lane that the shuffle has drawn in, not yet read
        self._slots: dict[int, int] = {}
        shuffle = webdataset.shuffle(buffer, initial=buffer, rng=random)
        self._order: Iterator[int] = shuffle(self._arrivals())

    def _arrivals(self) -> Iterator[int]:
        for number in range(self._starts[-1]):
            self._waiting.append(number)
            yield number

    def skip(self, count: int) -> None:
        """Leave the next images out, unread. To be called before any are taken."""
        gone = set(islice(self._order, count))
        self._waiting = [number for number in self._waiting if number not in gone]

    def take(self, count: int) -> list[int]:
        """The rows of memory that hold the next images; as many as are left where these are fewer."""
        wanted = list(islice(self._order, count))
        self._read_waiting()
        return [self._slots.pop(number) for number in wanted]

    def _read_waiting(self) -> None:
        for start, stop in _runs(self._waiting):
            while start < stop:
                index = bisect_right(self._starts, start) - 1
                piece, first = self._pieces[index], self._starts[index]
                end = min(stop, self._starts[index + 1])
                slots = self._read(piece, piece.start + start - first, end - start)
                self._slots.update(zip(range(start, end), slots, strict=True))
                start = end
        self._waiting.clear()

    def _read(self, piece: Piece, first: int, count: int) -> list[int]:
        """The rows of memory that hold images of a piece, or are marked as lost where they cannot be read."""
        if (file := self._opened(piece.shard)) is not None:
            try:
                return self._memory.read(file, first, count)
            except DataError:
                if count > 1:  # one by one, to lose no more than must be
                    numbers = range(first, first + count)
                    return [slot for number in numbers for slot in self._read(piece, number, 1)]
        return [self._memory.lose(piece, number) for number in range(first, first + count)]

    def _opened(self, shard: Shard) -> ShardFile | None:
        """A shard, or None if it cannot be opened."""
        if self._shard is not shard:
            self.close()
            self._shard = shard
            try:
                self._open = ShardFile(self._source, shard, self._memory.image_bytes, whole=False)
            except SourceError:
                raise
            except DataError:
                self._open = None
        return self._open

    def close(self) -> None:
        """Close the shard that is open."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of rising numbers without gaps."""
    if not numbers:
        return
    if numbers[-1] - numbers[0] == len(numbers) - 1:  # nearly always
        yield numbers[0], numbers[-1] + 1
        return
    start = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield start, last + 1
            start = number
        last = number
    yield start, last + 1
