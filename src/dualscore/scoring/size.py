"""Which size of images a model can score, and log Z for it: log Z is of one dimension only."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dualscore.energy import Energy, EnergyModel
from dualscore.errors import NormalizationError, ScoreError
from dualscore.gaussian import StationaryGaussian
from dualscore.images import to_pixels
from dualscore.model import ImageModel
from dualscore.networks import UNet
from dualscore.scoring.files import Size, first_size
from dualscore.terminal.hints import option

NORMALIZER_NOISES = 256
"""Noisy images that log Z is estimated on; at t_max it hardly matters what is under the noise."""


def wanted_size(
    model: ImageModel, given: Sequence[Path], left_out: Path, *, resize: bool, normalize: bool
) -> Size:
    """Decide the size of the images of a scoring: one for all of them.

    The training images' size, where log Z is known. Where it may be estimated, and the model holds nothing
    that is of one size, that of the first image.

    Args:
        model: the model.
        given: files and folders to score.
        left_out: a folder that is not entered.
        resize: whether images of other sizes are brought to this one.
        normalize: whether log Z may be estimated on the images.

    Returns:
        The size.

    Raises:
        NormalizationError: if log Z is needed and may not be estimated, or the model is a denoiser.
        ScoreError: if the model cannot score images of any size, or not of the first one's.
    """
    resizing, estimating = option("--resize", "RESIZE=1"), option("--normalize", "NORMALIZE=1")
    energy = model.score_model
    if not isinstance(energy, EnergyModel):
        raise NormalizationError("this model is a denoiser: it has no energy and no likelihood")
    if not isinstance(energy, Energy):
        raise ScoreError("the model is of vectors, not of images: nothing to score with it")
    unet = energy.network if isinstance(energy.network, UNet) else None
    if model.image_shape is None and unet is not None and unet.channels not in (1, 3):
        raise ScoreError(f"the network takes images of {unet.channels} channels, neither gray nor colour")
    own = None if model.image_shape is None else model.image_shape[1:]
    known = model.log_normalizer is not None
    if not known and not normalize:
        raise NormalizationError(
            "the model's normalization is not known yet, so its energies are no probabilities: train until "
            f"the first validation, or estimate it on the images to be scored with {estimating}"
        )
    if own is not None and any(isinstance(part, StationaryGaussian) for part in energy.modules()):
        return Size(
            *own,
            resize,
            f", the size that the model was trained on, and the only one that it knows; {resizing} crops and "
            "resizes others",
        )
    if own is not None and (resize or not normalize):
        return Size(
            *own,
            resize,
            ", the size that the model was trained on, and its probabilities add up to one for; "
            f"{estimating} makes them do so for another, {resizing} crops and resizes",
        )
    height, width = first_size(given, left_out)
    divisor = unet.size_divisor if unet is not None else 1
    if height % divisor or width % divisor:
        raise ScoreError(
            f"{given[0]}: the first image is {width}×{height}; the network takes sides divisible by {divisor}"
        )
    return Size(
        height,
        width,
        resize,
        f", as the first one; score other sizes apart, or crop and resize with {resizing}",
    )


def normalized(model: ImageModel, images: Tensor, size: Size) -> ImageModel:
    """The model for images of a size, log Z estimated if it is not known for them.

    Args:
        model: the model, on its device.
        images: the first ones, uint8 RGB, shape (B, 3, H, W), B ≥ 1.
        size: that `wanted_size` decided.

    Returns:
        The model itself where it has all that is needed; another one around the same network otherwise.
    """
    energy = model.score_model
    assert isinstance(energy, Energy)
    if model.image_shape is not None:
        channels = model.image_shape[0]
    else:  # a released network, the only ones that are of any size
        assert isinstance(energy.network, UNet)
        channels = energy.network.channels
    shape = (channels, size.height, size.width)
    same = model.image_shape == shape
    if same and model.log_normalizer is not None:
        return model
    sized = ImageModel(
        energy,
        image_shape=shape,
        t_max=model.t_max,
        t_min=model.t_min,
        noisy_entropy=model.noisy_entropy if same else None,
        provenance=f"{model.provenance}; log Z estimated on the images scored",
    ).eval()
    repeats = -(-NORMALIZER_NOISES // len(images))
    clean = to_pixels(images, channels)
    sized.normalize(clean.repeat(repeats, 1, 1, 1)[:NORMALIZER_NOISES], batch_size=len(images))
    return sized
