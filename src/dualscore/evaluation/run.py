"""Runs an evaluation: stage after stage, on all devices, each row kept as soon as it is measured."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dualscore.config import EvaluateConfig
from dualscore.data.base import ImageDataModule
from dualscore.data.batch import Batch
from dualscore.errors import DataError, NormalizationError
from dualscore.evaluation.plan import nested_choice
from dualscore.evaluation.stages import Images, Stage, Subject
from dualscore.evaluation.store import Rows, RowStore
from dualscore.images import to_pixels

KEPT_BYTES = 2**26
"""Stored images of a split that a session keeps in memory, at most."""


@dataclass
class Session:
    """What all stages of an evaluation share.

    Args:
        fabric: the devices.
        subject: what is measured.
        datamodule: the images.
        options: how it is measured.
        folder: where rows are kept.
        identity: what decides every figure: the checkpoint, the data, the seed, the precision.
        workers: loader processes a device.
        console: for the progress bar.
    """

    fabric: Fabric
    subject: Subject
    datamodule: ImageDataModule
    options: EvaluateConfig
    folder: Path
    identity: dict[str, Any]
    workers: int
    console: Console
    kept: dict[str, Batch] = field(default_factory=dict, init=False)

    def run(self, stage: Stage) -> Rows:
        """Measure what a stage still lacks.

        Args:
            stage: what to measure.

        Returns:
            Its rows of all images and devices, on every device.

        Raises:
            NormalizationError: if a figure is not finite, naming the images.
            DataError: if there are fewer than two images.
        """
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        base = self._base(stage.split)
        stage = replace(stage, count=min(stage.count, base))
        if stage.count < 2:
            raise DataError(f"{stage.name}: a standard error needs at least 2 {stage.split} images")
        chosen = {"split": stage.split, "count": stage.count, "of": base}
        identity = {**self.identity, **chosen, **stage.settings}
        store = RowStore(self.folder, stage.name, identity, rank)
        if self.fabric.is_global_zero:
            store.prepare()
        self.fabric.barrier()
        rows = store.read()
        done = set(rows["position"].tolist()) if rows else set()
        self.fabric.barrier()  # nobody writes before everybody has read
        if len(done) < stage.count:
            self._measure(stage, store, done, (rank, world_size))
            self.fabric.barrier()
            rows = store.read()
        _check_finite(stage, rows)
        return rows

    def _base(self, split: str) -> int:
        """Images of a split that stages choose theirs from, so that a smaller choice lies in a larger one."""
        wanted = self.options.images if split == "val" else self.options.train_images
        return min(wanted, self.datamodule.counts[split])

    def _measure(self, stage: Stage, store: RowStore, done: set[int], place: tuple[int, int]) -> None:
        with self._progress() as progress:
            task = progress.add_task(stage.name, total=-(-stage.count // place[1]))
            progress.advance(task, len(done) // place[1])
            try:
                for batch in self._batches(stage, done, place):
                    clean = to_pixels(
                        batch.image, len(self.subject.prior.mean), self.subject.prior.mean.dtype
                    )
                    images = Images(clean.to(self.fabric.device), batch.position.tolist(), stage.split)
                    store.add({"position": batch.position, **stage.measure(self.subject, images)})
                    progress.advance(task, len(clean))
            finally:
                store.flush()  # what was measured stays, whatever stopped it

    def _batches(self, stage: Stage, done: set[int], place: tuple[int, int]) -> Iterator[Batch]:
        """The stage's images that are not done yet, in full batches."""
        batch_size = max(1, self.options.batch_size // stage.batch_divisor)
        base = self._base(stage.split)
        mine = nested_choice(base, stage.count)
        waiting: list[Batch] = []
        for batch in self._stored(stage.split, base, batch_size, place):
            pairs = zip(batch.position.tolist(), batch.ordinal.tolist(), strict=True)
            keep = torch.tensor([i not in done and j in mine for i, j in pairs])
            waiting.append(Batch(*(part[keep] for part in batch)))
            if sum(len(part.position) for part in waiting) >= batch_size:
                whole = Batch(*(torch.cat(parts) for parts in zip(*waiting, strict=True)))
                yield Batch(*(part[:batch_size] for part in whole))
                waiting = [Batch(*(part[batch_size:] for part in whole))]
        last = [part for part in waiting if len(part.position)]
        if last:
            yield Batch(*(torch.cat(parts) for parts in zip(*last, strict=True)))

    def _stored(self, split: str, base: int, batch_size: int, place: tuple[int, int]) -> Iterator[Batch]:
        """This device's images of a split, read once: small sets are kept for the stages to come."""
        if split not in self.kept:
            parts: list[Batch] = []
            size = 0
            for batch in self.datamodule.evenly_spaced(split, base, batch_size, place, self.workers):
                size += batch.image.nbytes
                parts = [*parts, batch] if size <= KEPT_BYTES else []
                yield batch
            if parts:
                self.kept[split] = Batch(*(torch.cat(column) for column in zip(*parts, strict=True)))
            return
        whole = self.kept[split]
        for start in range(0, len(whole.position), batch_size):
            yield Batch(*(column[start : start + batch_size] for column in whole))

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not (self.console.is_terminal and self.fabric.is_global_zero),
        )


def _check_finite(stage: Stage, rows: Rows) -> None:
    for name, values in rows.items():
        wrong = ~values.reshape(len(values), -1).isfinite().all(dim=1)
        if wrong.any():
            where = rows["position"][wrong].tolist()
            shown = ", ".join(map(str, where[:10])) + (", …" if len(where) > 10 else "")
            kind = "energies" if name == "energy" else f"figures ({name})"
            raise NormalizationError(
                f"{stage.name}: {len(where)} of {len(values)} {kind} of the {stage.split} images are not "
                f"finite, at positions {shown}: no likelihood can be given"
            )
