"""Runs an evaluation: stage after stage, on all devices, each row kept as soon as it is measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dualscore.data.datamodule import Batch, ImageDataModule
from dualscore.errors import DataError, NormalizationError
from dualscore.evaluation.store import RowStore
from dualscore.images import to_pixels
from dualscore.measuring.subject import Images, Rows, Stage, Subject
from dualscore.noise import GOLDEN_RATIO
from dualscore.settings.config import EvaluateConfig

KINDS = {"train": "training", "val": "validation", "test": "test"}  # names of the splits' images
KEPT_BYTES = 2**26  # stored images of a split that a session keeps in memory, at most


@dataclass
class Session:
    """Runs stages on all devices and keeps their rows in `folder`.

    The identity is what decides every figure: the checkpoint, the data, the seed, the precision. Each device
    loads images with `workers` processes.
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
        """Measure what a stage still lacks: its rows of all images and devices, on every device.

        A NormalizationError names the images of which a figure is not finite; a DataError wants two images.
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

    def images(self, split: str, positions: Sequence[int]) -> Tensor:
        """Clean pixels (n, C, H, W) of some of the images that stages choose from, on the device."""
        found: dict[int, Tensor] = {}
        for batch in self._stored(split, self._base(split), self.options.batch_size, (0, 1)):
            for position, image in zip(batch.position.tolist(), batch.image, strict=True):
                if position in positions:
                    found[position] = image
        stored = torch.stack([found[position] for position in positions])
        return self._pixels(stored)

    def rows(
        self, name: str, count: int, measure: Callable[[list[int]], Rows], settings: dict[str, Any]
    ) -> Rows:
        """Measure `count` things that are no images of a split, on the first device, each once.

        Of some of their numbers `measure` gives the rows without `position`; `settings` decide the figures.
        """
        store = RowStore(self.folder, name, {**self.identity, **settings, "count": count}, 0)
        store.prepare()
        rows = store.read()
        done = set(rows["position"].tolist()) if rows else set()
        left = [number for number in range(count) if number not in done]
        if not left:
            return rows
        with self._progress("") as progress:
            task = progress.add_task(name, total=count, completed=len(done))
            try:
                for start in range(0, len(left), self.options.batch_size):
                    numbers = left[start : start + self.options.batch_size]
                    store.add({"position": torch.tensor(numbers), **measure(numbers)})
                    progress.advance(task, len(numbers))
            finally:
                store.flush()
        return store.read()

    @property
    def reported(self) -> str:
        """The split whose images are reported."""
        return self.datamodule.reported

    @property
    def kind(self) -> str:
        """The name of reported images: `test` or `validation`."""
        return KINDS[self.reported]

    def _pixels(self, stored: Tensor) -> Tensor:
        mean = self.subject.prior.mean
        return to_pixels(stored, len(mean), mean.dtype).to(self.fabric.device)

    def _base(self, split: str) -> int:
        """Images of a split that stages choose theirs from, so that a smaller choice lies in a larger one."""
        wanted = self.options.images if split == self.datamodule.reported else self.options.train_images
        return min(wanted, self.datamodule.counts[split])

    def _measure(self, stage: Stage, store: RowStore, done: set[int], place: tuple[int, int]) -> None:
        with self._progress() as progress:
            task = progress.add_task(stage.name, total=-(-stage.count // place[1]))
            progress.advance(task, len(done) // place[1])
            try:
                for batch in self._batches(stage, done, place):
                    clean = self._pixels(batch.image)
                    # The images that are reported have draws of their own, whatever split they are.
                    split = "" if stage.split == self.datamodule.reported else stage.split
                    images = Images(clean, batch.position.tolist(), split)
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

    def _progress(self, unit: str = "images") -> Progress:
        return Progress(
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit},".lstrip(",")),
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


def nested_choice(total: int, count: int) -> frozenset[int]:
    """`count` of `total` ordinals, spread evenly, and a part of every larger choice.

    Those whose multiples of the golden ratio have the smallest fractional parts.
    """
    return frozenset(sorted(range(total), key=lambda j: (j + 1) * GOLDEN_RATIO % 1.0)[:count])
