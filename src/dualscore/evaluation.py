"""Measures a trained model: evaluation.json and the table on the terminal."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from dualscore.baselines import FullGaussian, gaussian_bits_per_dim
from dualscore.data.module import ShardDataModule
from dualscore.data.reader import EvenlySpacedBatches
from dualscore.errors import NormalizationError
from dualscore.gaussian import StationaryGaussian
from dualscore.images import to_pixels
from dualscore.likelihood import Estimate
from dualscore.metrics import EnergyFigures, EnergySummary, LevelFigures, LevelSummary
from dualscore.module import DualScoreModule
from dualscore.shards import write_aside

FULL_COVARIANCE_LIMIT = 4096
"""Largest d for which the full-covariance Gaussian is fitted (d² doubles, 134 MB)."""
IMAGES_PER_DIMENSION = 16
"""Training images used for that fit, at most, per dimension."""


class EvaluationFigures(Callback):
    """Gathers a test run's figures: of validation images first, then of training images."""

    def on_test_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002, D102
        assert isinstance(pl_module, DualScoreModule)
        place = (pl_module.dimension, pl_module.t_range[1], pl_module.device)
        self._energies = [EnergyFigures(*place), EnergyFigures(*place)]
        self._levels = LevelFigures(pl_module.dimension, pl_module.levels.tolist(), pl_module.device)

    def on_test_batch_end(  # noqa: D102
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ANN401 - what test_step returned
        batch: Any,  # noqa: ANN401, ARG002 - Lightning's signature
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        self._energies[dataloader_idx].update(outputs["figures"])
        if dataloader_idx == 0:
            self._levels.update(outputs["figures"])

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002, D102
        self.validation, self.training = (energies.summary() for energies in self._energies)
        self.levels: list[LevelSummary] = self._levels.summary()


def measure_gaussians(
    datamodule: ShardDataModule, stationary: StationaryGaussian, channels: int
) -> dict[str, Any]:
    """Fit the full-covariance Gaussian where d allows it, and measure both on the evaluated images."""
    manifest, folder = datamodule.manifest, datamodule.folder
    dimension = stationary.eigenvalues.numel()

    def images(split: str, count: int) -> DataLoader[Any]:
        shards = manifest.splits[split].shards
        return DataLoader(
            EvenlySpacedBatches(folder, manifest.image_shape, shards, count, 512), batch_size=None
        )

    full = None
    if dimension <= FULL_COVARIANCE_LIMIT:
        full = FullGaussian(dimension)
        for batch in images("train", IMAGES_PER_DIMENSION * dimension if dimension > 1024 else 2**62):
            full.add(to_pixels(batch.image, channels))
        full.fit()
    batches = (batch.image for batch in images("val", datamodule.evaluate_images))
    figures: dict[str, Any] = gaussian_bits_per_dim(stationary, full, batches, channels)
    figures["training_images"] = {
        "stationary": manifest.statistics.images,
        "full_covariance": full.count if full is not None else None,
    }
    return figures


def _energy_figures(summary: EnergySummary | None) -> dict[str, Any]:
    paper = None if summary is None else asdict(summary.bits_per_dim)
    if paper is not None and not math.isfinite(paper["stderr"]):
        paper["stderr"] = None  # a single image has none
    return {
        "bits_per_dim": {"paper": paper},
        "log_normalizer": None if summary is None else summary.log_normalizer,
    }


def evaluation_report(
    figures: EvaluationFigures, module: DualScoreModule, datamodule: ShardDataModule, gaussian: dict[str, Any]
) -> dict[str, Any]:
    """Everything an evaluation found, as plain values for evaluation.json.

    Args:
        figures: what the test run gathered.
        module: the evaluated module.
        datamodule: the data it saw.
        gaussian: what `measure_gaussians` found.

    Returns:
        Nested dictionaries and lists.

    Raises:
        NormalizationError: if an energy was not finite.
    """
    manifest = datamodule.manifest
    validation, training = figures.validation, figures.training
    for split, summary in (("validation", validation), ("training", training)):
        if summary is not None and not math.isfinite(summary.bits_per_dim.value):
            raise NormalizationError(
                f"some energies of the {split} images are not finite: no bits/dim can be given"
            )
    if bad := [
        f"{level.noise_variance:.3g}" for level in figures.levels if not math.isfinite(level.space_loss)
    ]:
        raise NormalizationError(f"some losses are not finite at noise variances {', '.join(bad)}")
    return {
        "dataset": {
            "name": manifest.dataset,
            "release": manifest.release,
            "path": str(datamodule.folder),
            "split": "val",
            "colour": "gray" if module.image_shape[0] == 1 else "colour",
        },
        "images": min(datamodule.evaluate_images, manifest.splits["val"].images),
        "image_shape": list(module.image_shape),
        "dimension": module.dimension,
        **_energy_figures(validation),
        "gaussian": gaussian,
        "train": {
            "images": min(datamodule.evaluate_train_images, manifest.splits["train"].images),
            **_energy_figures(training),
        },
        "noise_levels": [asdict(level) for level in figures.levels],
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write evaluation.json, whole or not at all."""
    write_aside(path, (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _estimate(figure: dict[str, Any]) -> Estimate:
    """A figure of a report, where an error that is not known is null."""
    return Estimate(figure["value"], math.inf if figure["stderr"] is None else figure["stderr"])


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print an evaluation as tables."""
    data = report["dataset"]
    shape = "×".join(map(str, report["image_shape"]))
    console.print(
        f"\n[bold]{report['experiment']}[/], step {report['step']:,}, {report['weights']} weights",
        soft_wrap=True,
    )
    console.print(f"{report['images']:,} validation images {shape} · {data['release']}", soft_wrap=True)
    table = Table("bits/dim", "validation", "training", title_justify="left")
    sides = [report["bits_per_dim"]["paper"], report["train"]["bits_per_dim"]["paper"]]
    if sides[0] is not None:
        table.add_row("model (paper's protocol)", *(str(_estimate(side)) for side in sides))
    names = {"stationary": "Gaussian, stationary", "full_covariance": "Gaussian, full covariance"}
    for key, name in names.items():
        value = report["gaussian"][key]
        table.add_row(name, "d is too large" if value is None else f"{value:.3f}", "")
    if sides[0] is not None and report["gaussian"]["full_covariance"] is not None:
        table.add_row(
            "below the full Gaussian", f"{report['gaussian']['full_covariance'] - sides[0]['value']:.3f}", ""
        )
    console.print(table)
    table = Table("input PSNR", "output PSNR", "space loss", "time loss", "effective dimension")
    for level in report["noise_levels"]:
        time = "—" if level["time_loss"] is None else f"{level['time_loss']:.2e}"
        table.add_row(
            f"{level['psnr_in']:.0f} dB",
            f"{level['psnr_out']:.2f} dB",
            f"{level['space_loss']:.4f}",
            time,
            f"{level['effective_dimension']:,.1f}",
        )
    console.print(table)
