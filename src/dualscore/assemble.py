"""The one place that turns configurations into objects."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from dualscore.data.shards import Manifest, load_spectrum
from dualscore.data.source import RemoteFolder, Source, find, local_folder
from dualscore.data.transfer import is_remote
from dualscore.densities import DENSITIES, GaussianMixture
from dualscore.energy import Denoiser, Energy, Fading, LevelPhase, ScoreModel, SlopeOffset
from dualscore.errors import DataError
from dualscore.gaussian import QUANTIZATION_VARIANCE, Gaussian, StationaryGaussian, WhiteGaussian
from dualscore.images import LUMA
from dualscore.likelihood.units import LEVELS
from dualscore.network_table import NETWORKS, check_network
from dualscore.networks import CausalEnergy, LocalSizes, MeanFreeEnergy, RadialEnergy, SeveralOrders
from dualscore.networks.causal_energy import RADIUS
from dualscore.networks.mean_free import mean_free_spectrum
from dualscore.runs.checkpoints import FORMAT
from dualscore.settings.config import (
    CAUSAL,
    RADIAL,
    VECTORS,
    Anchor,
    ExperimentConfig,
    Half,
    KnownDensity,
    ModelKind,
    ResidualInput,
)
from dualscore.settings.experiment import to_plain
from dualscore.shipped import prepare

if TYPE_CHECKING:
    from dualscore.data.datamodule import ImageDataModule
    from dualscore.training.lightning_module import DualScoreModule

VALIDATION_STRATA = 16
"""Strata of ln t that the validation images share, two images or more in each."""


class ImageStatistics(NamedTuple):
    """Second-order statistics of 8-bit training images, dequantized."""

    mean: torch.Tensor
    """Per channel, shape (C,), pixels in [0, 1]."""
    spectrum: torch.Tensor
    """E[ŷ ŷᵀ] of the DCT coefficients of image − mean, in pixel², shape (C, C, H, W)."""

    @property
    def pixel_variance(self) -> torch.Tensor:
        """σ² in pixel², averaged over channels and pixels (Parseval), a scalar."""
        return self.spectrum.diagonal().mean()


def find_data(config: ExperimentConfig) -> tuple[Source, Manifest]:
    """Find the experiment's shards; a DataError if they are not what the experiment asks for."""
    data = config.data
    demo = data.dataset.startswith("demo")
    recipe = prepare(
        data.dataset,
        source=not demo,
        size=data.size if demo or data.dataset == "folder" else None,
        out="…" if is_remote(data.path) else data.path,
    )
    source, manifest = find(data.path, data.cache, data.cache_gb, recipe)
    file, name = f"{source}/manifest.json", config.name
    if manifest.dataset != data.dataset:
        raise DataError(
            f"{file}: the data set is {manifest.dataset!r} ({manifest.release}), but the experiment {name} "
            f"is for data.dataset={data.dataset}; their likelihoods cannot be compared. Point data.path "
            f"elsewhere, or make it with: {recipe}"
        )
    channels, *sides = manifest.image_shape
    if sides != [data.size, data.size] or channels < data.channels:
        raise DataError(
            f"{file}: images are {'×'.join(map(str, manifest.image_shape))}, but the experiment {name} "
            f"is for {data.channels}×{data.size}×{data.size}; make them with: {recipe}"
        )
    total, parts = manifest.splits["train"].images, 1 if data.half is Half.none else 2
    if parts * data.images > total:
        apart = ", twice, without sharing any (data.half)" if parts == 2 else ""
        raise DataError(
            f"{file}: there are {total} training images, but the experiment {name} asks for "
            f"data.images={data.images} of them{apart}; lower data.images"
        )
    if isinstance(source, RemoteFolder):
        # Every lane has a shard open, and so has every process that validates or reads a substitute.
        processes = max(1, data.workers)
        source.check_room(processes * (data.streams + 2 * config.trainer.devices))
    return source, manifest


def training_images(config: ExperimentConfig, manifest: Manifest) -> range | None:
    """Positions of the training images that the experiment uses; None for all."""
    total, count = manifest.splits["train"].images, config.data.images
    if count == 0:
        return None
    return range(total - count, total) if config.data.half is Half.B else range(count)


def known_density(config: ExperimentConfig) -> GaussianMixture | None:
    """The density that the experiment's images are drawn from; None where they are read from shards."""
    if config.data.density is KnownDensity.none:
        return None
    return DENSITIES[config.data.density.value](image_shape(config))


def load_statistics(config: ExperimentConfig, data: tuple[Source, Manifest] | None = None) -> ImageStatistics:
    """Of the images as the model sees them, dequantized; those of a known density are exact."""
    channels = config.data.channels
    floor = QUANTIZATION_VARIANCE * torch.eye(channels, dtype=torch.float64)[:, :, None, None]
    if (density := known_density(config)) is not None:
        mean, spectrum = density.moments()
        # Rounding adds the variance of one step, and dequantizing that of another.
        return ImageStatistics(mean, spectrum + 2 * floor if config.data.quantized else spectrum)
    source, manifest = data or find_data(config)
    mean = torch.tensor(manifest.statistics.pixel_mean, dtype=torch.float64)
    spectrum = torch.from_numpy(load_spectrum(local_folder(source), manifest))
    if channels == 1 and len(mean) == 3:
        luma = torch.tensor(LUMA, dtype=torch.float64)
        mean = (luma @ mean)[None]
        # Gray is rounded to 8 bits once more.
        spectrum = torch.einsum("c,k,ckhw->hw", luma, luma, spectrum)[None, None] + floor
    if config.data.mean_free:
        return ImageStatistics(0.0 * mean, mean_free_spectrum(spectrum + floor))
    return ImageStatistics(mean, spectrum + floor)


def blank_statistics(image_shape: tuple[int, int, int]) -> ImageStatistics:
    """Placeholder statistics for a model whose own are about to be loaded from a checkpoint."""
    channels, height, width = image_shape
    eye = torch.eye(channels, dtype=torch.float64)
    return ImageStatistics(eye[0] * 0, eye[:, :, None, None].expand(-1, -1, height, width))


def build_score_model(config: ExperimentConfig, statistics: ImageStatistics) -> ScoreModel:
    """Build the energy or the denoiser of an experiment, with fresh weights from torch's random state."""
    check_network(config)
    if config.network.kind == RADIAL:
        density = known_density(config)
        assert density is not None
        return RadialEnergy(
            density.centers(),
            config.noise.t_min,
            float(statistics.pixel_variance),
            hidden=config.network.width,
            layers=config.network.layers,
        )
    if config.network.kind == CAUSAL:
        causal = CausalEnergy(
            statistics.mean,
            statistics.pixel_variance,
            hidden=config.network.width,
            layers=config.network.layers,
            levels=LEVELS if config.data.quantized and config.data.dequantize else 0,
            radius=config.data.size - 1 if config.data.mean_free else RADIUS,
            mean_free=config.data.mean_free,
        )
        energy = causal if config.network.orders == 1 else SeveralOrders(causal, config.network.orders)
        return MeanFreeEnergy(energy, config.data.size) if config.data.mean_free else energy
    options, channels = config.energy, config.data.channels
    white = WhiteGaussian(statistics.mean, statistics.pixel_variance)
    stationary = StationaryGaussian(statistics.mean, statistics.spectrum)
    anchors = {Anchor.none: None, Anchor.white: white, Anchor.stationary: stationary}
    views: dict[ResidualInput, list[Gaussian]] = {
        ResidualInput.raw: [],
        ResidualInput.scaled: [white],
        ResidualInput.whitened: [stationary],
        ResidualInput.both: [stationary, white],
    }
    whiteners = views[options.residual_input]
    seen = channels * (max(1, len(whiteners)) + (2 if options.phase else 0))
    network = NETWORKS[config.network.kind](
        config.network, seen, seen + (channels if options.potential else 0)
    )
    if config.model is ModelKind.denoiser:
        return Denoiser(network)
    return Energy(
        network,
        anchor=anchors[options.anchor],
        whiteners=whiteners,
        offset=SlopeOffset(config.noise.t_min, config.noise.t_max) if options.offset else None,
        fading=Fading(stationary.eigenvalues.max()) if options.fading else None,
        phase=LevelPhase() if options.phase else None,
        sizes=LocalSizes(channels) if options.sizes else None,
    )


def image_shape(config: ExperimentConfig) -> tuple[int, int, int]:
    """(C, H, W) of the images as the model sees them; (1, 1, d) of vectors."""
    if config.data.density in VECTORS:
        return 1, 1, config.data.size
    if config.data.mean_free:
        return 1, 1, config.data.size**2 - 1
    return config.data.channels, config.data.size, config.data.size


def build_module(config: ExperimentConfig, datamodule: "ImageDataModule") -> "DualScoreModule":
    """Build the LightningModule; the weights depend on the experiment's seed alone."""
    from dualscore.data.reader import ShardDataModule
    from dualscore.training.lightning_module import DualScoreModule

    data = (datamodule.source, datamodule.manifest) if isinstance(datamodule, ShardDataModule) else None
    statistics = load_statistics(config, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_score_model(config, statistics)
    validated = min(config.trainer.validate_images, datamodule.counts["val"])
    if validated < 2:
        raise DataError(f"{datamodule.dataset}: a standard error needs at least 2 validation images")
    module = DualScoreModule(
        model,
        prior=StationaryGaussian(statistics.mean, statistics.spectrum),
        config=config,
        image_shape=image_shape(config),
        strata=min(VALIDATION_STRATA, validated // 2),
        description={
            "format": FORMAT,
            "config": to_plain(config),
            "dataset": datamodule.dataset,
            "release": datamodule.release,
        },
    )
    # Before any checkpoint is loaded, which would be rounded otherwise.
    return module.double() if config.trainer.precision == "64-true" else module


def build_datamodule(config: ExperimentConfig) -> "ImageDataModule":
    """Build the data module."""
    from dualscore.data.datamodule import Batching
    from dualscore.data.known import KnownDataModule
    from dualscore.data.patch_vectors import MeanFreeDataModule
    from dualscore.data.reader import ShardDataModule

    data = config.data
    batching = Batching(
        batch_size=data.batch_size,
        streams=data.streams,
        workers=data.workers,
        accumulate=config.trainer.accumulate,
        seed=config.seed,
        validate_images=config.trainer.validate_images,
        validate_batch_size=config.evaluate.batch_size,
    )
    if (density := known_density(config)) is not None:
        return KnownDataModule(density, data.density.value, data.quantized, batching)
    source, manifest = find_data(config)
    training = training_images(config, manifest)
    kind = MeanFreeDataModule if data.mean_free else ShardDataModule
    return kind(source, manifest, batching, shuffle_buffer=data.shuffle_buffer, training=training)


def build(config: ExperimentConfig) -> "tuple[DualScoreModule, ImageDataModule]":
    """Build what trains and what it sees."""
    datamodule = build_datamodule(config)
    return build_module(config, datamodule), datamodule
