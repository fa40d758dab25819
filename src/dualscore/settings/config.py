"""The typed schema of an experiment: every key, its default, its meaning and what it may be."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class ModelKind(Enum):
    """What is trained."""

    energy = "energy"
    denoiser = "denoiser"


class KnownDensity(Enum):
    """Where images come from instead of shards: a density whose likelihood is known, or none."""

    none = "none"
    gaussian_textures = "gaussian_textures"
    texture_mixture = "texture_mixture"
    scale_mixture = "scale_mixture"
    mode_mixture = "mode_mixture"


VECTORS = {KnownDensity.scale_mixture, KnownDensity.mode_mixture}
"""Densities of vectors, round around their centres; the others are of images."""
RADIAL = "radial"
"""The network of vectors, which is an energy by itself."""
CAUSAL = "causal"
"""The one of images that is an energy by itself, and normalized; others are functions f(y, t) of images."""
CHECKS = "checks"
"""Named beside estimators: the energy's identities (`dualscore.measuring.checks`)."""


class Half(Enum):
    """Which end of the training images `data.images` counts from: two networks that share no image."""

    none = "none"
    A = "A"
    B = "B"


class Best(Enum):
    """The validation figure that the best checkpoint has the lowest of.

    Never the paper's bits/dim: an energy that gives the rest of space too little looks better there.
    """

    bound = "bound"
    loss = "loss"


class Embedding(Enum):
    """How the network is told t: the paper's angles t·f_k, or angles in log t."""

    linear = "linear"
    log = "log"


class Norm(Enum):
    """How the UNet's features are normalized: the paper's homogeneous way, or pixel by pixel."""

    scale_preserving = "scale_preserving"
    pixel = "pixel"


class Method(Enum):
    """Adam (the paper's), or SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

    adam = "adam"
    soap = "soap"


class Anchor(Enum):
    """The Gaussian energy that is added: none, white, or stationary (the training set's spectrum)."""

    none = "none"
    white = "white"
    stationary = "stationary"


class ResidualInput(Enum):
    """What the network sees: y, (y − μ)/√(σ²+t), (Σ+t)^(−1/2)(y − μ), or the last two as channels."""

    raw = "raw"
    scaled = "scaled"
    whitened = "whitened"
    both = "both"


class Schedule(Enum):
    """How the learning rate falls: halved at intervals, or along a half cosine."""

    halving = "halving"
    cosine = "cosine"


Check = tuple[Callable[[Any], bool], str]
POSITIVE: Check = (lambda v: v > 0 and math.isfinite(v), "must be > 0")
NOT_NEGATIVE: Check = (lambda v: v >= 0 and math.isfinite(v), "must be ≥ 0")

FEW_OR_ALL: Check = (lambda v: v == 0 or v >= 2, "must be 0 (all) or ≥ 2")
ONCE: Check = (lambda v: len(v) == len(set(v)), "must name each once")
SEVERAL: Check = (lambda v: v >= 2, "must be ≥ 2: a standard error needs two images")

ACCELERATOR: Check = (lambda v: v in ("auto", "cpu", "gpu"), "must be auto, cpu or gpu")
PRECISION: Check = (
    lambda v: v in ("32-true", "bf16-mixed", "64-true"),
    "must be 32-true, bf16-mixed or 64-true (16-mixed scales only the outer loss, so the inner "
    "gradients underflow; bf16-true rounds t itself)",
)
# Where single precision still holds t, t·∇U and z/√t.
VARIANCE: Check = (lambda v: 1e-12 <= v <= 1e6, "must be > 0, from 1e-12 to 1e6")
DECIBELS: Check = (
    lambda v: len({round(x, 1) for x in v}) == len(v) > 0 and all(-60 <= x <= 120 for x in v),
    "must be a list of different decibels from -60 to 120",
)


def option(default: Any, meaning: str, check: Check | None = None) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Declare a key with its default, its meaning and the values it may take."""
    metadata = {"meaning": meaning, "check": check}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """Where images come from and how they are batched."""

    density: KnownDensity = option(KnownDensity.none, "known density that images are drawn from")
    path: str = option("", "folder with manifest.json and shards; or http(s)://…, or 'pipe:COMMAND {}'")
    cache: str = option("data/cache", "folder for shards that come from elsewhere")
    cache_gb: float = option(50.0, "GB that folder may hold; the least recently used shards go", POSITIVE)
    dataset: str = option("", "data set the manifest must name, as given to make data DATASET=")
    size: int = option(MISSING, "side of the images in pixels, or length of the vectors", POSITIVE)
    channels: int = option(3, "3 for colour, 1 for grayscale", (lambda v: v in (1, 3), "must be 1 or 3"))
    images: int = option(0, "training images used, repeated if few (docs/cluster.md); 0: all", FEW_OR_ALL)
    half: Half = option(Half.none, "A: the first data.images, B: the last; they must not share any")
    batch_size: int = option(128, "images a step, over all devices", POSITIVE)
    streams: int = option(
        8,
        "reading streams a batch, a multiple of the devices, whose number then changes nothing",
        POSITIVE,
    )
    workers: int = option(2, "loader processes a device; 0 reads in the training process", NOT_NEGATIVE)
    shuffle_buffer: int = option(8192, "images a loader process shuffles among, over all streams", POSITIVE)
    max_skipped: int = option(
        100, "unreadable training images an epoch that are replaced; more are an error", NOT_NEGATIVE
    )
    crops: list[int] = option(
        [],
        "sides of the squares that training cuts from images, in turn, as many pixels a step; none: no cuts",
        (lambda v: len(set(v)) == len(v) and all(side > 0 for side in v), "must be different sides, > 0"),
    )
    flip: bool = option(True, "random horizontal flips in training")
    mean_free: bool = option(False, "gray patches less their mean, dequantized, as size² − 1 coordinates")
    quantized: bool = option(True, "8-bit images; those of a known density, and mean_free, may be floats")
    dequantize: bool = option(False, "noise of one 8-bit step on training images: a density at t = 0 exists")


@dataclass
class NetworkConfig:
    """The network."""

    kind: str = option("unet", "unet, or an energy by itself: causal (normalized), radial (of vectors)")
    width: int = option(64, "channels at the finest scale; causal, radial: hidden units", POSITIVE)
    scales: int = option(3, "encoder blocks", (lambda v: 1 <= v <= 8, "must be from 1 to 8"))
    layers: int = option(
        3, "convolutions a block; causal, radial: hidden layers", (lambda v: v >= 2, "must be ≥ 2")
    )
    orders: int = option(
        1,
        "causal: orders that it reads pixels in, of which it has the densities' mean; training takes one",
        (lambda v: v in (1, 2, 4, 8), "must be 1, 2, 4 or 8"),
    )
    embedding: Embedding = option(Embedding.linear, "how the network is told t")
    residual: bool = option(False, "whether layers add their input to their output")
    norm: Norm = option(Norm.scale_preserving, "how features are normalized")
    contrast: bool = option(False, "tell the network the root mean square of what it sees")
    hidden_gain: float = option(1.0, "initial gain of the hidden layers' norms", POSITIVE)
    output_gain: float = option(1.0, "factor on the last convolution's initial weights", POSITIVE)


@dataclass
class EnergyConfig:
    """The parts of the energy beside the network's inner product; the defaults are the paper's ½⟨y, f⟩."""

    anchor: Anchor = option(Anchor.none, "Gaussian energy added")
    residual_input: ResidualInput = option(ResidualInput.raw, "what the network sees")
    potential: bool = option(False, "a second map of the network, summed over its pixels")
    sizes: bool = option(False, "a third map, of how large the image is around each pixel")
    phase: bool = option(False, "whether the network sees where in its grey level each pixel lies")
    fading: bool = option(False, "residual times λ_max/(λ_max+t), λ_max the images' largest eigenvalue")
    offset: bool = option(False, "c(t), learned by its slopes")


@dataclass
class NoiseConfig:
    """Noise variances t in training, log-uniform, in pixel²."""

    t_min: float = option(1e-9, "smallest variance", VARIANCE)
    t_max: float = option(1e3, "largest variance; log Z is estimated there", VARIANCE)
    stratified: bool = option(False, "one t in each of as many strata of ln t as a batch has images")


@dataclass
class ObjectiveConfig:
    """Dual score matching: the arguments of `dual_score_matching`, by their names, and when it begins."""

    time_weight: float = option(1.0, "weight of the time term; 0 is single score matching", NOT_NEGATIVE)
    level_weight: float = option(0.0, "weight of telling the noise level from another one", NOT_NEGATIVE)
    likelihood_weight: float = option(
        0.0, "weight of U/d in nats, the likelihood of noisy images; network.kind=causal", NOT_NEGATIVE
    )
    likelihood_steps: int = option(
        0, "first steps, by the likelihood alone, three in five images at low noise", NOT_NEGATIVE
    )


@dataclass
class OptimConfig:
    """The optimiser and its schedule."""

    method: Method = option(Method.adam, "optimiser")
    lr: float = option(5e-4, "learning rate", POSITIVE)
    schedule: Schedule = option(Schedule.halving, "how the learning rate falls")
    halve_every: int = option(100_000, "steps between halvings", POSITIVE)
    warmup_steps: int = option(0, "steps of linear warm-up", NOT_NEGATIVE)
    final_lr: float = option(1e-5, "where the cosine ends", NOT_NEGATIVE)
    offset_lr_factor: float = option(5.0, "learning rate of c(t), relative to the rest", POSITIVE)
    ema_steps: int = option(0, "steps the exponential average of the weights spans; 0 for none", NOT_NEGATIVE)


@dataclass
class TrainerConfig:
    """How long, where and how often."""

    max_steps: int = option(1_000_000, "training steps", POSITIVE)
    devices: int = option(1, "devices a node", POSITIVE)
    nodes: int = option(1, "nodes", POSITIVE)
    accelerator: str = option("auto", "what the devices are", ACCELERATOR)
    precision: str = option("32-true", "64-true shows whether two runs differ by rounding alone", PRECISION)
    accumulate: int = option(1, "parts of a device's batch, to save memory; gradients add up", POSITIVE)
    compile: bool = option(False, "compile the loss: a minute or two at the start, then faster steps")
    tf32: bool = option(False, "let a GPU round products to TF32 in training")
    max_skipped: int = option(
        10, "steps without a finite gradient between validations; one more ends the run", NOT_NEGATIVE
    )
    spike: float = option(
        0.0,
        "a mean loss this many times the lowest goes back to the last checkpoint's weights; 0 never does",
        (lambda v: v == 0 or v > 1, "must be 0, or above 1"),
    )
    hang_minutes: float = option(30, "minutes without progress after which a run is ended", POSITIVE)
    validate_every: int = option(1000, "steps between validations, which write the checkpoints", POSITIVE)
    validate_images: int = option(2048, "validation images used in training, evenly spaced", SEVERAL)
    keep: int = option(2, "last checkpoints kept, to go on from where the newest is damaged", POSITIVE)
    best: Best = option(Best.bound, "validation figure that the best checkpoint is chosen by")
    log_every: int = option(50, "steps between entries in the log", POSITIVE)


@dataclass
class EvaluateConfig:
    """What make evaluate measures."""

    estimators: list[str] = option(
        ["paper", "dequantized", "bound", "ode", CHECKS],
        "estimates of the table in measuring/estimators.py, and the checks",
        (lambda v: len(v) == len(set(v)) > 0, "must name one estimator or more, each once"),
    )
    images: int = option(
        50_000, "reported images (test, or validation without one) for paper, dequantized", SEVERAL
    )
    train_images: int = option(2048, "training images for the figure beside", SEVERAL)
    subset_images: int = option(2048, "reported images for noise levels, checks and bound", SEVERAL)
    draws: int = option(4, "dequantizations an image", POSITIVE)
    strata: int = option(24, "noise variances an image for the bound and the energy's rise", POSITIVE)
    ode_images: int = option(64, "reported images for ode", SEVERAL)
    ode_tolerance: float = option(1e-3, "tolerance of the ODE solver, in standard deviations", POSITIVE)
    yardsticks: list[str] = option(
        ["stationary", "full_covariance", "causal", "png", "webp", "jpeg_xl"],
        "what stands beside: see evaluation/yardsticks.py",
        ONCE,
    )
    mirror: bool = option(
        False,
        "average the bound's denoiser over network.orders, or with its mirror image (twice the evaluations)",
    )
    chains: int = option(
        128, "annealed chains that measure the energy's mass, none if one by form; 0 for none", NOT_NEGATIVE
    )
    batch_size: int = option(128, "images a batch on each device", POSITIVE)
    psnr: list[float] = option(
        [90.0, 75.0, 60.0, 45.0, 30.0, 15.0, 0.0, -15.0, -30.0],
        "noise levels reported, as input PSNR in dB",
        DECIBELS,
    )


@dataclass
class ExperimentConfig:
    """An experiment, whole."""

    name: str = option(MISSING, "the experiment file's name")
    seed: int = option(0, "the one seed of the run", NOT_NEGATIVE)
    model: ModelKind = option(ModelKind.energy, "what is trained")
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
