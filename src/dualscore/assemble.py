"""The one place that turns configurations into objects."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dualscore.config import Anchor, Embedding, ExperimentConfig, ModelKind, ResidualInput
from dualscore.energy import Denoiser, Energy, Fading, ScoreModel, SlopeOffset
from dualscore.errors import DataError
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian, WhiteGaussian
from dualscore.images import LUMA
from dualscore.networks import LinearEmbedding, LogEmbedding, UNet
from dualscore.noise import variance_at_psnr
from dualscore.shards import Manifest, load_spectrum

if TYPE_CHECKING:
    from dualscore.data.module import ShardDataModule
    from dualscore.module import DualScoreModule

EMBEDDINGS = {Embedding.linear: LinearEmbedding, Embedding.log: LogEmbedding}


class ImageStatistics:
    """Second-order statistics of 8-bit training images, dequantised.

    Args:
        mean: per channel, shape (C,), pixels in [0, 1].
        spectrum: E[ŷ ŷᵀ] of the DCT coefficients of image − mean, in pixel², shape (C, C, H, W).
    """

    def __init__(self, mean: torch.Tensor, spectrum: torch.Tensor) -> None:
        self.mean, self.spectrum = mean, spectrum

    @property
    def pixel_variance(self) -> torch.Tensor:
        """σ² in pixel², averaged over channels and pixels (Parseval), a scalar."""
        return self.spectrum.diagonal().mean()


def load_manifest(config: ExperimentConfig) -> Manifest:
    """Read the manifest of the experiment's data and check that it is what the experiment asks for.

    Args:
        config: the experiment.

    Returns:
        The manifest.

    Raises:
        DataError: naming the file, what is wrong and the command that makes the data.
    """
    data = config.data
    source = "" if data.dataset == "demo" else " SRC=…"
    size = f" SIZE={data.size}" if data.dataset in ("demo", "folder") else ""
    recipe = f"make data DATASET={data.dataset}{source}{size} OUT={data.path}"
    manifest = Manifest.load(data.path, recipe)
    if manifest.dataset != data.dataset:
        raise DataError(
            f"{data.path}/manifest.json: the data set is {manifest.dataset!r} ({manifest.release}), but the "
            f"experiment {config.name} is for data.dataset={data.dataset}; their likelihoods cannot be "
            f"compared. Point data.path elsewhere, or make it with: {recipe}"
        )
    channels, *sides = manifest.image_shape
    if sides != [data.size, data.size] or channels < data.channels:
        raise DataError(
            f"{data.path}/manifest.json: images are {'×'.join(map(str, manifest.image_shape))}, but the "
            f"experiment {config.name} is for {data.channels}×{data.size}×{data.size}; "
            f"make them with: {recipe}"
        )
    return manifest


def load_statistics(config: ExperimentConfig, manifest: Manifest) -> ImageStatistics:
    """The statistics of the images as the model sees them, gray if the experiment is, dequantised."""
    mean = torch.tensor(manifest.statistics.pixel_mean, dtype=torch.float64)
    spectrum = torch.from_numpy(load_spectrum(config.data.path, manifest))
    channels = config.data.channels
    rounding = 0.0
    if channels == 1 and len(mean) == 3:
        luma = torch.tensor(LUMA, dtype=torch.float64)
        mean = (luma @ mean)[None]
        spectrum = torch.einsum("c,k,ckhw->hw", luma, luma, spectrum)[None, None]
        rounding = QUANTIZATION_VARIANCE  # gray is rounded to 8 bits once more
    floor = (QUANTIZATION_VARIANCE + rounding) * torch.eye(channels, dtype=torch.float64)
    return ImageStatistics(mean, spectrum + floor[:, :, None, None])


def blank_statistics(image_shape: tuple[int, int, int]) -> ImageStatistics:
    """Placeholder statistics for a model whose own are about to be loaded from a checkpoint."""
    channels, height, width = image_shape
    eye = torch.eye(channels, dtype=torch.float64)
    return ImageStatistics(eye[0] * 0, eye[:, :, None, None].expand(-1, -1, height, width))


def build_score_model(config: ExperimentConfig, statistics: ImageStatistics) -> ScoreModel:
    """Build the energy or the denoiser of an experiment, with fresh weights from torch's random state."""
    network = UNet(
        config.data.channels,
        EMBEDDINGS[config.network.embedding](),
        width=config.network.width,
        scales=config.network.scales,
        layers=config.network.layers,
        output_gain=config.network.output_gain,
    )
    if config.model is ModelKind.denoiser:
        return Denoiser(network)
    options = config.energy
    white = WhiteGaussian(statistics.mean, statistics.pixel_variance)
    stationary = StationaryGaussian(statistics.mean, statistics.spectrum)
    anchors = {Anchor.none: None, Anchor.white: white, Anchor.stationary: stationary}
    inputs = {ResidualInput.raw: None, ResidualInput.scaled: white, ResidualInput.whitened: stationary}
    return Energy(
        network,
        anchor=anchors[options.anchor],
        whitener=inputs[options.residual_input],
        offset=SlopeOffset(config.noise.t_min, config.noise.t_max) if options.offset else None,
        fading=Fading(statistics.pixel_variance) if options.fading else None,
    )


def image_shape(config: ExperimentConfig) -> tuple[int, int, int]:
    """(C, H, W) of the images as the model sees them."""
    return config.data.channels, config.data.size, config.data.size


def build_module(
    config: ExperimentConfig, manifest: Manifest, plain_config: dict[str, Any]
) -> "DualScoreModule":
    """Build the LightningModule; the weights depend on the experiment's seed alone."""
    from dualscore.module import DualScoreModule

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_score_model(config, load_statistics(config, manifest))
    return DualScoreModule(
        model,
        optim=config.optim,
        image_shape=image_shape(config),
        t_range=(config.noise.t_min, config.noise.t_max),
        levels=[variance_at_psnr(decibels) for decibels in config.evaluate.psnr],
        time_weight=config.objective.time_weight,
        flip=config.data.flip,
        streams=config.data.streams,
        max_steps=config.trainer.max_steps,
        seed=config.seed,
        description={
            "format": 1,
            "config": plain_config,
            "dataset": manifest.dataset,
            "release": manifest.release,
        },
    )


def build_datamodule(config: ExperimentConfig, manifest: Manifest) -> "ShardDataModule":
    """Build the data module."""
    from dualscore.data.module import ShardDataModule

    return ShardDataModule(
        Path(config.data.path),
        manifest,
        batch_size=config.data.batch_size,
        streams=config.data.streams,
        workers=config.data.workers,
        shuffle_buffer=config.data.shuffle_buffer,
        seed=config.seed,
        validate_images=config.trainer.validate_images,
        evaluate_images=config.evaluate.images,
        evaluate_train_images=config.evaluate.train_images,
        evaluate_batch_size=config.evaluate.batch_size,
    )
