"""Runs an evaluation: stage after stage, on all devices, each row kept as soon as it is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dualscore.config import EvaluateConfig
from dualscore.data.base import ImageDataModule
from dualscore.errors import DataError, NormalizationError
from dualscore.evaluation.stages import Images, Stage, Subject
from dualscore.evaluation.store import Rows, RowStore
from dualscore.images import to_pixels


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
        identity = {**self.identity, "split": stage.split, "count": stage.count, **stage.settings}
        store = RowStore(self.folder / stage.name, identity, rank)
        if self.fabric.is_global_zero:
            store.prepare()
        self.fabric.barrier()
        rows = store.read()
        done = set(rows["position"].tolist()) if rows else set()
        if stage.count < 2:
            raise DataError(f"{stage.name}: a standard error needs at least 2 {stage.split} images")
        self.fabric.barrier()  # nobody writes before everybody has read
        if len(done) < stage.count:
            self._measure(stage, store, done, (rank, world_size))
            self.fabric.barrier()
            rows = store.read()
        _check_finite(stage, rows)
        return rows

    def _measure(self, stage: Stage, store: RowStore, done: set[int], place: tuple[int, int]) -> None:
        batch_size = max(1, self.options.batch_size // stage.batch_divisor)
        loader = self.datamodule.evenly_spaced(stage.split, stage.count, batch_size, place, self.workers)
        channels = len(self.subject.prior.mean)
        with self._progress() as progress:
            share = -(-stage.count // place[1])
            task = progress.add_task(stage.name, total=share)
            try:
                for batch in loader:
                    keep = torch.tensor([i not in done for i in batch.position.tolist()])
                    if keep.any():
                        clean = to_pixels(batch.image[keep], channels, self.subject.prior.mean.dtype)
                        position = batch.position[keep]
                        images = Images(clean.to(self.fabric.device), position.tolist())
                        store.add({"position": position, **stage.measure(self.subject, images)})
                    progress.advance(task, len(keep))
            finally:
                store.flush()  # what was measured stays, whatever stopped it

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
