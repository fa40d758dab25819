"""Which network a model has, as plain values, and the network rebuilt from them with stored weights."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from dualscore.assemble import blank_statistics, build_score_model, image_shape
from dualscore.data.shards import MOST_VALUES
from dualscore.energy import ScoreModel
from dualscore.files.typed_json import TypedJson
from dualscore.gaussian import StationaryGaussian
from dualscore.model_files.released import PaperNetwork, fitted
from dualscore.settings.config import CAUSAL, RADIAL, VECTORS, ExperimentConfig
from dualscore.settings.experiment import to_config, to_plain

Shape = tuple[int, int, int]  # (C, H, W) of images
KEPT = {
    "model": None,
    "data": ("channels", "size", "density", "mean_free"),
    "network": None,
    "energy": None,
    "noise": ("t_min", "t_max"),
}
"""Sections of an experiment, and keys in them (None: all), that decide which weights fit and what they do."""


def of_experiment(config: ExperimentConfig) -> dict[str, Any]:
    """An experiment's architecture as plain values."""
    plain = to_plain(config)
    return {
        "experiment": {
            section: plain[section] if keys is None else {key: plain[section][key] for key in keys}
            for section, keys in KEPT.items()
        }
    }


def of_released(network: PaperNetwork) -> dict[str, Any]:
    """A released network's architecture as plain values."""
    return {"released": asdict(network) | {"layers": list(network.layers)}}


def rebuild(
    document: TypedJson, weights: Mapping[str, Tensor], shape: Shape | None
) -> tuple[ScoreModel, float]:
    """The network that plain values from a file describe, with stored weights, and the t_min of its training.

    `shape` is that of the images it is said to be for, None for any. The smallest noise variance is 0 where
    it is not known, as of a released network. Raises a DualscoreError that names a wrong key, or ValueError
    if the weights are not of that network, or it is not for such images.
    """
    if "released" in document.mapping():
        return _rebuild_released(document["released"], weights, shape), 0.0
    stored = document["experiment"].mapping()
    kept = {section: stored[section] for section in KEPT if section in stored}
    config = to_config({**kept, "name": "from a file"})
    if shape != image_shape(config):
        raise ValueError(f"said to be for images of {shape}, configured are {image_shape(config)}")
    return of_config(config, weights), config.noise.t_min


def _rebuild_released(described: TypedJson, weights: Mapping[str, Tensor], shape: Shape | None) -> ScoreModel:
    kind = described["model"].text("energy|denoiser")
    channels, width, scales = (described[key].count() for key in ("channels", "width", "scales"))
    network = PaperNetwork(kind, channels, width, scales, three_counts(described["layers"]))
    model = network.fitted(weights)
    if shape and (shape[0] != channels or shape[1] % 2**scales or shape[2] % 2**scales):
        raise ValueError(f"the network cannot be one of images of {shape}")
    return model


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def three_counts(entry: TypedJson) -> Shape:
    """A list of three whole numbers from 1 on."""
    counts = [item.count() for item in entry.items()]
    if len(counts) != 3:
        raise entry.fail("must be three counts")
    return counts[0], counts[1], counts[2]


def of_config(config: ExperimentConfig, weights: Mapping[str, Tensor]) -> ScoreModel:
    """The network of an experiment, with stored weights; ValueError if they are not of that network."""
    shape = image_shape(config)
    if min(shape) < 1 or shape[0] * shape[1] * shape[2] > MOST_VALUES:
        raise ValueError(f"images of {shape}, more than images here may have")
    if config.network.kind == RADIAL and config.data.density not in VECTORS:
        raise ValueError("a radial network needs a density of vectors")
    # A Gaussian's spectrum is of one size, which the weights must have; where there is none, any size does.
    stored = {tuple(value.shape) for name, value in weights.items() if name.endswith(".eigenvalues")}
    if stored - {shape}:
        raise ValueError(f"weights for images of {min(stored - {shape})}, configured are {shape}")
    blank = blank_statistics(shape if stored else (shape[0], 1, 1))
    depth = max(config.network.scales, config.network.layers)
    if config.network.kind == CAUSAL:  # a perceptron for each channel
        depth = max(depth, shape[0])
    return fitted(lambda: build_score_model(config, blank), weights, depth)


def prior(shape: Shape, weights: Mapping[str, Tensor]) -> StationaryGaussian:
    """The training images' Gaussian from its stored buffers; ValueError if they are not of one."""
    stored = tuple(weights["eigenvalues"].shape)
    if stored != shape:
        raise ValueError(f"weights for images of {stored}, configured are {shape}")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ValueError("the Gaussian of the training images has figures that are not finite")
    if not bool((weights["eigenvalues"] > 0).all()):
        raise ValueError("the Gaussian of the training images has variances that are not positive")
    blank = blank_statistics(shape)
    return fitted(lambda: StationaryGaussian(blank.mean, blank.spectrum), weights)
