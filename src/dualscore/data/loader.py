"""Batches out of loader processes: sent by value, none lost without an error, limits looked at before."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dualscore.data.workers import live_with_the_run, make_room, out_of_reach, starting
from dualscore.errors import DataError


class Sent:
    """A batch on its way out of a loader process, by value.

    PyTorch would send each tensor as an open file, through a socket in TMPDIR that a thread serves: where
    there are too few files, or TMPDIR's name is too long, that thread fails, and the batch is lost.
    """

    def __init__(self, batch: tuple[Any, ...]) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is pickled: as what arrives is made of."""
        return _received, (type(self.batch), *(x.numpy() if isinstance(x, Tensor) else x for x in self.batch))


def _received(kind: Any, *parts: Any) -> Any:  # noqa: ANN401 - any named tuple
    # Copied, so that it lies where PyTorch's own tensors do.
    return kind(*(torch.tensor(x) if isinstance(x, np.ndarray) else x for x in parts))


class Loader(DataLoader[Any]):
    """Batches that a data set yields, or gives for what `asked_for` yields, by processes of this run.

    Args:
        batches: the data set; its batches are named tuples.
        workers: loader processes; 0 reads in this one.
        images: how many images all batches have together, if that is known: fewer are a DataError.
        open_files: files that a process which reads has open at once.
        asked_for: what batches of a data set without an order of its own are asked for by.
    """

    def __init__(
        self,
        batches: Dataset[Any],
        workers: int,
        images: int | None = None,
        *,
        open_files: int = 1,
        asked_for: Iterable[Any] | None = None,
    ) -> None:
        with starting():
            begins = live_with_the_run() if workers else None
        super().__init__(
            batches,
            batch_size=None,
            sampler=asked_for,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=cast(Any, Sent) if workers else None,
            worker_init_fn=begins,
        )
        self.images, self.open_files = images, open_files

    def __iter__(self) -> Any:  # noqa: ANN401 - PyTorch's type is one of its own
        """Yield all batches in order; DataError if any are missing."""
        make_room(self.num_workers, self.open_files)
        with starting(), out_of_reach():
            batches = super().__iter__()
        return self._counted(batches)

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        found = 0
        for batch in batches:
            found += 0 if self.images is None else len(batch.image)
            yield batch
        # PyTorch passes over what a process did not send.
        if self.images is not None and found != self.images:
            raise DataError(
                f"loader processes sent {found} of {self.images} images: some were lost on the way; "
                "the same command tries again"
            )


@contextmanager
def deaths_told(
    way_out: str = "make room, and the same command goes on", kind: type[Exception] = DataError
) -> Iterator[None]:
    """Say in one line that a loader process died: PyTorch interrupts whatever this process does then."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise kind(f"a loader process died, most often for want of memory: {way_out}") from error
