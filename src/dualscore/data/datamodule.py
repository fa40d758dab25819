"""What training and evaluation ask of a data set, wherever its images come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import lightning
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dualscore.data.epoch_plan import share_of_worker
from dualscore.data.loader import Loader
from dualscore.data.shards import Shard
from dualscore.data.source import Source
from dualscore.errors import DataError


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


@dataclass(frozen=True)
class Batching:
    """How images are batched, wherever they come from."""

    batch_size: int
    """Training images a step over all devices."""
    streams: int
    """Streams that a batch draws from: lanes of `dualscore.data.epoch_plan`, or of random numbers."""
    workers: int
    """Loader processes a device; 0 reads in the training process."""
    accumulate: int
    """Parts that a device's training batch is yielded in."""
    seed: int
    validate_images: int
    """Validation images used while training."""
    validate_batch_size: int
    """Images a batch on a device then."""


class ImageDataModule(lightning.LightningDataModule, ABC):
    """Batches of images for training, validation and evaluation; subclasses say what the images are."""

    dataset: str
    release: str
    """Which release, or what the images are, for people."""
    identity: str
    """What changes whenever the images do."""
    counts: dict[str, int]
    """Images of each split, `train`, `val` and, where there is one, `test`."""
    path: Source | None = None
    """Where the data set is; None where the images are drawn."""
    training_shards: tuple[Shard, ...] = ()
    """What the training images are read from; none where they are drawn."""

    def __init__(self, batching: Batching) -> None:
        super().__init__()
        self.batching = batching
        self.epoch_read = 0
        """The epoch of the last training batch."""
        self.unreadable: list[tuple[int, int]] = []
        """Epoch and place in the split of this device's training images that were replaced, until taken."""

    def place(self) -> tuple[int, int]:
        """This device among all: (rank, world size)."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def device_streams(self) -> range:
        """This device's share of the streams."""
        rank, world_size = self.place()
        each = self.batching.streams // world_size
        return range(rank * each, (rank + 1) * each)

    @property
    def reported(self) -> str:
        """The split that figures are of: `test` where there is one, else `val`."""
        return "test" if "test" in self.counts else "val"

    def photographs(self, split: str, positions: Tensor) -> Tensor | None:  # noqa: ARG002 - nothing is known
        """Numbers of the photographs that images at positions, int64, shape (n,), are of.

        From 0 in each split, so that errors can be taken over photographs; None where nobody knows them.
        """
        return None

    @property
    def statistics_images(self) -> int:
        """How many images the stationary statistics are of: all training images, also where few are used."""
        return self.counts["train"]

    def training_loader(self, batches: "IterableDataset[Batch]", start: int) -> Loader:
        """A loader of this device's part of an epoch's batches from `start` on, which misses none."""
        batching, streams = self.batching, self.device_streams()
        each = batching.batch_size // batching.streams * len(streams)
        return Loader(batches, batching.workers, (self.batches - start) * each, open_files=len(streams) + 1)

    @property
    @abstractmethod
    def batches(self) -> int:
        """Global training batches in an epoch."""

    @abstractmethod
    def epoch_loader(self, epoch: int, start: int) -> Loader:
        """This device's part of an epoch's global batches, from batch `start` on."""

    @abstractmethod
    def evenly_spaced(
        self, split: str, count: int, batch_size: int, place: tuple[int, int] = (0, 1), workers: int = 0
    ) -> Loader:
        """At most `count` images of a split in order, each once: evenly spaced, or the first of drawn ones.

        The device at `place`, (rank, world size), gets its share.
        """

    def train_dataloader(self) -> "ResumableLoader":
        """The endless, resumable sequence of training batches."""
        return ResumableLoader(self)

    def val_dataloader(self) -> Loader:
        """The fixed validation set of training."""
        batching = self.batching
        return self.evenly_spaced(
            "val", batching.validate_images, batching.validate_batch_size, self.place(), batching.workers
        )


class ResumableLoader:
    """A training loader that knows its place: epoch and batches consumed, the same on every device.

    Where gradients are accumulated a batch is yielded in equal parts, each of which counts as one. Lightning
    saves `state_dict` into checkpoints and calls `load_state_dict` before training goes on; the plan is then
    replayed to that place.
    """

    def __init__(self, datamodule: ImageDataModule) -> None:
        self._datamodule = datamodule
        self._parts = datamodule.batching.accumulate
        self._batches = datamodule.batches * self._parts
        self.epoch = 0
        self.consumed = 0

    def __len__(self) -> int:
        """Batches in an epoch, or their parts."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch, or the next epoch where nothing of this one is left."""
        # Done here, not after the last batch: Lightning stops by the length and never asks further.
        if self.consumed >= self._batches:
            self.epoch, self.consumed = self.epoch + 1, 0
        for batch in self._datamodule.epoch_loader(self.epoch, self.consumed // self._parts):
            self._datamodule.epoch_read = self.epoch
            # Told by the batch itself, since another process may have read it.
            lost = batch.replaced[batch.replaced >= 0].tolist()
            self._datamodule.unreadable += [(self.epoch, position) for position in lost]
            for part in zip(*(column.chunk(self._parts) for column in batch), strict=True):
                self.consumed += 1
                yield Batch(*part)

    def state_dict(self) -> dict[str, int]:
        """The place: epoch and whole batches of it consumed; steps, and so checkpoints, end with one."""
        return {"epoch": self.epoch, "consumed": self.consumed // self._parts}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that `state_dict` returned."""
        self.epoch, self.consumed = state["epoch"], state["consumed"] * self._parts


class MeasuredBatches(IterableDataset[Batch]):
    """Batches of `count` images in order, shared by devices and their loader processes."""

    count: int
    batch_size: int
    place: tuple[int, int]
    """Which device of how many."""
    workers: int

    def range_of(self, worker: int) -> tuple[int, int]:
        """The range of the images that falls to a loader process."""
        return share_of_worker(self.count, self.place, worker, max(1, self.workers))

    def __len__(self) -> int:
        """Batches this device's loader yields, exactly."""
        return sum(-(-(last - first) // self.batch_size) for first, last in self._ranges())

    def _ranges(self) -> list[tuple[int, int]]:
        return [self.range_of(worker) for worker in range(max(1, self.workers))]

    def loader(self) -> Loader:
        """A loader of these batches, which misses none of the device's images."""
        return Loader(self, self.workers, sum(last - first for first, last in self._ranges()))


def worker_place() -> tuple[int, int]:
    """This loader process among those of its device: (number, how many)."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def check_positions(split: str, positions: Tensor, images: int) -> None:
    """Refuse positions, shape (n,), outside a split; DataError names the first."""
    outside = positions[(positions < 0) | (positions >= images)]
    if len(outside):
        raise DataError(f"position {int(outside[0])} is not one of the {images} {split} images")
