"""A run as the figures see it: its best checkpoint, the images it is measured on, what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dualscore.errors import CheckpointError, FigureError
from dualscore.evaluation import evaluate_checkpoint
from dualscore.evaluation.session import Session, open_checkpoint
from dualscore.likelihood import Estimate, decibels_per_dim
from dualscore.measuring.measured import Extent
from dualscore.measuring.subject import Rows, Stage
from dualscore.redaction import restore
from dualscore.runs.checkpoints import best_sound
from dualscore.runs.folder import Run, missing_run
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import override_config


@dataclass(frozen=True)
class Trained:
    """A run for figures, opened when the first of them needs it, on a GPU if there is one."""

    folder: Path  # other runs that figures need are looked for next to it
    console: Console
    overrides: Sequence[str] = ()  # settings that win over what it was trained with, as data.path=…
    other: Path | None = None  # a run on other images, for figure 2

    @cached_property
    def config(self) -> ExperimentConfig:
        """What it was trained with, on one device."""
        return read_run(self.folder, self.overrides)

    @cached_property
    def checkpoint(self) -> Path:
        """Its best one that can be read."""
        return best_sound(Run(self.folder), self.console.print)

    @cached_property
    def session(self) -> Session:
        """The checkpoint, ready to be measured; keeps the rows."""
        config = self.config  # first, for its errors say what is wrong with the folder
        return open_checkpoint(config, self.checkpoint, self.folder / "evaluation", self.console)

    @property
    def credit(self) -> str:
        """Which network and images a figure is of, for people."""
        step, release = self.session.step, self.session.datamodule.release
        return f"{self.folder.name} ({self.config.name}, step {step:,}) · {release}"

    @property
    def dimension(self) -> int:
        """D = C·H·W."""
        return math.prod(self.session.image_shape)

    @property
    def has_images(self) -> bool:
        """Whether the model is of images, not of vectors."""
        return self.session.image_shape[1] > 1

    def need_energy(self, figure: str) -> None:
        """Refuse a denoiser."""
        if not self.session.subject.is_energy:
            raise FigureError(f"{figure} needs an energy, and {self.folder} trained a denoiser")

    @cached_property
    def extent(self) -> Extent:
        """How many images of which split figures are of."""
        datamodule = self.session.datamodule
        return evaluate_checkpoint.extent(self.config.evaluate, datamodule.counts, datamodule.reported)

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The evaluation's stages by name, so that what it measured is not measured again."""
        options = self.config.evaluate
        if "paper" not in options.estimators:
            options = replace(options, estimators=[*options.estimators, "paper"])
        measured = self.session.blank()
        return {stage.name: stage for stage in evaluate_checkpoint.stages(measured, options, self.extent)}

    @cached_property
    def log_z(self) -> Estimate:
        """Log Z on the reported images, in nats."""
        measured = self.session.blank()
        measured.rows["normalizer"] = self.session.run(self.stages["normalizer"])
        return measured.log_z

    @cached_property
    def validation(self) -> Rows:
        """`position` and `energy` U(x, 0) in nats, without log Z, of the reported images."""
        return self.session.run(self.stages["paper"])

    def at_quantiles(self, quantiles: Sequence[float]) -> list[int]:
        """Positions of the validation images at quantiles of log p, 0 for the least probable one."""
        rows = self.validation
        order = rows["energy"].argsort(descending=True)
        chosen = order[(torch.tensor(quantiles) * (len(order) - 1)).round().long()]
        return rows["position"][chosen].tolist()

    def decibels(self, energy: Tensor) -> Tensor:
        """Log p in dB/dim from energies without log Z, in nats, any shape."""
        return decibels_per_dim(-(energy.double() + self.log_z.value), self.dimension)


def read_run(folder: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """What a run was trained with, on one device here; `overrides` are settings, as data.path=…."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run; {missing_run(folder)}")
    stored = Run(folder).read_config()
    if not any(o.startswith("data.path=") for o in overrides) and isinstance(stored.get("data"), dict):
        stored["data"]["path"] = restore(str(stored["data"].get("path")), "")
    here = "gpu" if torch.cuda.is_available() else "cpu"
    alone = ["trainer.devices=1", "trainer.nodes=1", f"trainer.accelerator={here}"]
    return override_config(stored, [*alone, *overrides], str(Run(folder).config_file))
