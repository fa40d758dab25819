"""A checkpoint opened with its images: runs stage after stage on all devices, each row kept as it comes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor

from dualscore.assemble import build, known_density
from dualscore.bars import progress_bar
from dualscore.data.datamodule import Batch, ImageDataModule
from dualscore.devices import allow_tf32
from dualscore.errors import CheckpointError, DataError, NormalizationError, TrainingError
from dualscore.evaluation.store import DEFINITIONS, RowStore
from dualscore.files.aside import sha256
from dualscore.files.plain_text import one_line
from dualscore.images import to_pixels
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.subject import KINDS, Images, Rows, Stage, Subject
from dualscore.noise import GOLDEN_RATIO, variance_at_psnr
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import check_architecture
from dualscore.settings.config import EvaluateConfig, ExperimentConfig
from dualscore.settings.experiment import to_plain
from dualscore.training.trainer import accelerator, launched_by

KEPT_BYTES = 2**26  # stored images of a split that a session keeps in memory, at most


@dataclass
class Session:
    """A checkpoint's model and images; runs stages on all devices and keeps their rows in `folder`.

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
    step: int = 0  # of the checkpoint
    kept: dict[str, list[Batch]] = field(default_factory=dict, init=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return str(self.identity["checkpoint"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as the model sees them."""
        channels, height, width = self.subject.prior.eigenvalues.shape
        return channels, height, width

    @property
    def reported(self) -> str:
        """The split whose images are reported."""
        return self.datamodule.reported

    @property
    def kind(self) -> str:
        """The name of reported images: `test` or `validation`."""
        return KINDS[self.reported]

    def blank(self) -> Measured:
        """A measurement without rows."""
        return Measured(
            subject=self.subject,
            dimension=self.subject.prior.eigenvalues.numel(),
            grid=Grid(*self.subject.t_range, self.options.strata),
            levels=sorted(variance_at_psnr(decibels) for decibels in self.options.psnr),
            photographs=partial(self.datamodule.photographs, self.reported),
            of_training=partial(self.datamodule.photographs, "train"),
        )

    def run(self, stage: Stage) -> Rows:
        """Measure what a stage still lacks: its rows of all images and devices, on every device.

        A NormalizationError names the images of which a figure is not finite; a DataError wants two images.
        """
        identity = self.identity | stage.settings | stage.marks
        if stage.split is not None:
            base = self._base(stage.split)
            stage = replace(stage, count=min(stage.count, base))
            identity |= {"split": stage.split, "of": base}
            if stage.count < 2:
                raise DataError(f"{stage.name}: a standard error needs at least 2 {stage.split} images")
        identity["count"] = stage.count
        store = RowStore(self.folder, stage.name, identity, self.fabric.global_rank)
        if self.fabric.is_global_zero:
            store.prepare()
        self.fabric.barrier()
        rows = store.read()
        self.fabric.barrier()  # nobody writes before everybody has read
        done = set(rows["position"].tolist()) if rows else set()
        if len(done) < stage.count:
            self._measure(stage, store, done)
            self.fabric.barrier()
            rows = store.read()
        if (found := len(rows.get("position", ()))) != stage.count:
            raise DataError(
                f"{stage.name}: {found} of {stage.count} rows were measured; the same command goes on"
            )
        if stage.split is not None:
            _check_finite(stage, rows)
        return rows

    def rows(
        self, name: str, count: int, measure: Callable[[list[int]], Rows], settings: dict[str, Any]
    ) -> Rows:
        """Measure `count` things that are no images of a split: `measure` gives rows of some numbers."""
        return self.run(Stage(name, None, count, lambda _, n: measure(n.position), marks=settings))

    def images(self, split: str, positions: Sequence[int]) -> Tensor:
        """Clean pixels (n, C, H, W) of some of the images that stages choose from, on the device."""
        found = {
            position: image
            for batch in self._stored(split)
            for position, image in zip(batch.position.tolist(), batch.image, strict=True)
            if position in positions
        }
        return self._pixels([found[position] for position in positions])

    def _measure(self, stage: Stage, store: RowStore, done: set[int]) -> None:
        world_size, unit = self.fabric.world_size, "" if stage.split is None else "images"
        with progress_bar(self.console, unit, self.fabric.is_global_zero) as progress:
            task = progress.add_task(stage.name, total=-(-stage.count // world_size))
            progress.advance(task, len(done) // world_size)
            try:
                for images in self._batches(stage, done):
                    rows = stage.measure(self.subject, images)
                    store.add({"position": torch.tensor(images.position), **rows})
                    progress.advance(task, len(images.position))
            finally:
                store.flush()  # what was measured stays, whatever stopped it

    def _batches(self, stage: Stage, done: set[int]) -> Iterator[Images]:
        """This device's share of a stage's images, or numbers, that are not done yet, in full batches."""
        size = max(1, self.options.batch_size // stage.batch_divisor)
        if stage.split is None:
            left = [number for number in range(stage.count) if number not in done]
            mine = left[self.fabric.global_rank :: self.fabric.world_size]
            for start in range(0, len(mine), size):
                yield Images(torch.empty(0), mine[start : start + size])
            return
        # The images that are reported have draws of their own, whatever split they are.
        split = "" if stage.split == self.reported else stage.split
        chosen = nested_choice(self._base(stage.split), stage.count)
        waiting: list[tuple[int, Tensor]] = []
        for batch in self._stored(stage.split):
            pairs = zip(batch.position.tolist(), batch.ordinal.tolist(), strict=True)
            for j, (position, ordinal) in enumerate(pairs):
                if ordinal in chosen and position not in done:
                    waiting.append((position, batch.image[j]))
                if len(waiting) == size:
                    yield self._images(waiting, split)
                    waiting = []
        if waiting:
            yield self._images(waiting, split)

    def _images(self, chosen: list[tuple[int, Tensor]], split: str) -> Images:
        positions, stored = zip(*chosen, strict=True)
        return Images(self._pixels(stored), list(positions), split)

    def _pixels(self, stored: Sequence[Tensor]) -> Tensor:
        mean = self.subject.prior.mean
        return to_pixels(torch.stack([*stored]), len(mean), mean.dtype).to(self.fabric.device)

    def _base(self, split: str) -> int:
        """Images of a split that stages choose theirs from, so that a smaller choice lies in a larger one."""
        wanted = self.options.images if split == self.reported else self.options.train_images
        return min(wanted, self.datamodule.counts[split])

    def _stored(self, split: str) -> Iterator[Batch]:
        """This device's images of a split, read once: small sets are kept for the stages to come."""
        if split in self.kept:
            yield from self.kept[split]
            return
        place = self.fabric.global_rank, self.fabric.world_size
        parts: list[Batch] = []
        size, count = 0, self._base(split)
        for batch in self.datamodule.evenly_spaced(
            split, count, self.options.batch_size, place, self.workers
        ):
            size += batch.image.nbytes
            parts = [*parts, batch] if size <= KEPT_BYTES else []
            yield batch
        if parts:
            self.kept[split] = parts


def open_checkpoint(config: ExperimentConfig, checkpoint: Path, folder: Path, console: Console) -> Session:
    """Load a checkpoint's weights for measuring, averaged ones where there are any, in full precision.

    Rows of the images are kept in `folder`. A DualscoreError is one line for people.
    """
    allow_tf32(False)
    content = read_checkpoint(checkpoint)
    check_architecture(checkpoint, content["dualscore"]["config"], to_plain(config))
    module, datamodule = build(config)
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = f"the weights do not fit the experiment: {one_line(error):.200}"
        raise CheckpointError(f"{checkpoint}: {reason}") from error
    fabric, density = _fabric(config), known_density(config)
    double = config.trainer.precision == "64-true"
    for part in (module.evaluated, module.prior, *([density] if density is not None else [])):
        # Figures are taken in full precision, however the model was trained.
        (part.double() if double else part.float()).to(fabric.device).requires_grad_(False).eval()
    identity = {
        "definitions": DEFINITIONS,
        "checkpoint": sha256(checkpoint),
        "dataset": datamodule.identity,
        "seed": config.seed,
        "double": double,
        "dequantize": config.data.dequantize,
        "channels": config.data.channels,
    }
    subject, step = replace(module.measured().subject, density=density), int(content["global_step"])
    return Session(
        fabric, subject, datamodule, config.evaluate, folder, identity, config.data.workers, console, step
    )


def _fabric(config: ExperimentConfig) -> Fabric:
    options = config.trainer
    try:
        fabric = Fabric(
            accelerator=accelerator(config),
            devices=options.devices,
            num_nodes=options.nodes,
            strategy="ddp" if options.devices * options.nodes > 1 else "auto",
            plugins=launched_by(),
        )
    except (RuntimeError, ValueError) as error:
        asked = f"trainer.devices={options.devices}, trainer.accelerator={options.accelerator}"
        raise TrainingError(f"{asked}: {one_line(error):.200}") from error
    fabric.launch()
    return fabric


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
