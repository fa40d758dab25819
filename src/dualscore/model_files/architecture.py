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
from dualscore.model_files.fitting import check_depth, fitted
from dualscore.model_files.released import PaperNetwork
from dualscore.settings.config import RADIAL, VECTORS, ExperimentConfig
from dualscore.settings.experiment import to_config, to_plain

_KEPT = {
    "model": None,
    "data": ("channels", "size", "density"),
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
            for section, keys in _KEPT.items()
        }
    }


def of_released(network: PaperNetwork) -> dict[str, Any]:
    """A released network's architecture as plain values."""
    return {"released": asdict(network) | {"layers": list(network.layers)}}


def rebuild(
    document: TypedJson, weights: Mapping[str, Tensor], shape: tuple[int, int, int] | None
) -> ScoreModel:
    """The network that plain values describe, with stored weights.

    Args:
        document: what `of_experiment` or `of_released` gave, from a file.
        weights: the network's, by name.
        shape: (C, H, W) of the images that it is said to be for; None for any.

    Returns:
        The network.

    Raises:
        DualscoreError: naming the key that is wrong.
        ValueError: if the weights are not of that network, or it is not for such images.
    """
    if "released" in document.mapping():
        described = document["released"]
        layers = [item.count() for item in described["layers"].items()]
        if len(layers) != 3:
            raise described["layers"].fail("must be three counts")
        network = PaperNetwork(
            described["model"].text("energy|denoiser"),
            described["channels"].count(),
            described["width"].count(),
            described["scales"].count(),
            (layers[0], layers[1], layers[2]),
        )
        check_depth(max(network.scales, *network.layers), weights)
        divisor = 2**network.scales
        if shape and (shape[0] != network.channels or shape[1] % divisor or shape[2] % divisor):
            raise ValueError(f"the network cannot be one of images of {shape}")
        return fitted(network.build, weights)
    config = _config(document)
    if shape != image_shape(config):
        raise ValueError(f"said to be for images of {shape}, configured are {image_shape(config)}")
    return of_config(config, weights)


def smallest_variance(document: TypedJson) -> float:
    """The smallest noise variance of training, in pixel²; 0 for a released network, of which it is not known.

    Args:
        document: what `of_experiment` or `of_released` gave, from a file.

    Returns:
        t_min.
    """
    return 0.0 if "released" in document.mapping() else _config(document).noise.t_min


def _config(document: TypedJson) -> ExperimentConfig:
    experiment = document["experiment"].mapping()
    kept = {section: experiment[section] for section in _KEPT if section in experiment}
    return to_config({**kept, "name": "from a file"})


def prior(shape: tuple[int, int, int], weights: Mapping[str, Tensor]) -> StationaryGaussian:
    """The training images' Gaussian from its stored buffers.

    Args:
        shape: (C, H, W) of the images.
        weights: its buffers, by name.

    Returns:
        The Gaussian.

    Raises:
        ValueError: if they are not of such a Gaussian.
    """
    stored = tuple(weights["eigenvalues"].shape)
    if stored != shape:
        raise ValueError(f"weights for images of {stored}, configured are {shape}")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ValueError("the Gaussian of the training images has figures that are not finite")
    if not bool((weights["eigenvalues"] > 0).all()):
        raise ValueError("the Gaussian of the training images has variances that are not positive")
    blank = blank_statistics(shape)
    return fitted(lambda: StationaryGaussian(blank.mean, blank.spectrum), weights)


def of_config(config: ExperimentConfig, weights: Mapping[str, Tensor]) -> ScoreModel:
    """The network of an experiment, with stored weights.

    Args:
        config: the experiment.
        weights: the network's, by name.

    Returns:
        The network.

    Raises:
        ValueError: if the weights are not of that network.
    """
    shape = image_shape(config)
    if min(shape) < 1 or shape[0] * shape[1] * shape[2] > MOST_VALUES:
        raise ValueError(f"images of {shape}, more than images here may have")
    if config.network.kind == RADIAL and config.data.density not in VECTORS:
        raise ValueError("a radial network needs a density of vectors")
    check_depth(max(config.network.scales, config.network.layers), weights)
    # A Gaussian's spectrum is of one size, which the weights must have; where there is none, any size does.
    stored = {tuple(value.shape) for name, value in weights.items() if name.endswith(".eigenvalues")}
    if stored - {shape}:
        raise ValueError(f"weights for images of {min(stored - {shape})}, configured are {shape}")
    blank = blank_statistics(shape if stored else (shape[0], 1, 1))
    return fitted(lambda: build_score_model(config, blank), weights)
