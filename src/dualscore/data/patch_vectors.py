"""Gray patches less their mean, as vectors, out of shards: dequantized once, as in the files of others."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from dualscore.data.datamodule import Batch
from dualscore.data.loader import Loader
from dualscore.data.reader import ShardDataModule
from dualscore.images import dequantize, to_pixels
from dualscore.networks.mean_free import to_vectors
from dualscore.noise import fixed_uniform

DRAW = 5_000  # of a patch's independent draws, the one that dequantizes it


class MeanFreeBatches(IterableDataset[Batch]):
    """Batches whose images are vectors, float32, (B, 1, 1, side² − 1), of those that others yield."""

    def __init__(self, stored: IterableDataset[Batch], seed: int) -> None:
        self.stored, self.seed = stored, seed

    def __iter__(self) -> Iterator[Batch]:
        """Yield this loader process's batches in order."""
        for batch in self.stored:
            yield batch._replace(image=vectors(batch.image, batch.position.tolist(), self.seed))

    def __len__(self) -> int:
        """As many as the others."""
        return len(self.stored)  # type: ignore[arg-type]


def vectors(stored: Tensor, positions: list[int], seed: int) -> Tensor:
    """Vectors (B, 1, 1, side² − 1) of stored patches (B, C, side, side) at places in their split."""
    pixels = to_pixels(stored, 1)
    return to_vectors(dequantize(pixels, fixed_uniform(positions, pixels.shape[1:], seed, DRAW)))


class MeanFreeDataModule(ShardDataModule):
    """Batches of vectors from shards of patches; the seed dequantizes them, the same in every epoch."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as ShardDataModule
        super().__init__(*arguments, **named)
        self.identity += f" mean-free {self.batching.seed}"

    def training_loader(self, batches: IterableDataset[Batch], start: int) -> Loader:
        """This device's part of an epoch's batches from `start` on."""
        return super().training_loader(MeanFreeBatches(batches, self.batching.seed), start)

    def evenly_spaced(
        self, split: str, count: int, batch_size: int, place: tuple[int, int] = (0, 1), workers: int = 0
    ) -> Loader:
        """`count` evenly spaced vectors of a split, in order, each once; see `ImageDataModule`."""
        stored = super().evenly_spaced(split, count, batch_size, place, workers)
        return Loader(MeanFreeBatches(stored.dataset, self.batching.seed), workers, stored.images)  # type: ignore[arg-type]
