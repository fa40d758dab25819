"""Scores batches of images with a model: their size, log Z for it, probabilities and effective dimensions."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dualscore.energy import EnergyModel, MappedEnergy, normalized_by_form
from dualscore.errors import DualscoreError, NormalizationError, ScoreError
from dualscore.gaussian import StationaryGaussian
from dualscore.images import to_pixels, to_stored
from dualscore.likelihood import decibels_per_dim
from dualscore.model import ImageModel
from dualscore.networks import UNet
from dualscore.noise import corrupt, fixed_noise, psnr, variance_at_psnr
from dualscore.scoring.image_files import Size, first_size

NORMALIZER_NOISES = 256
"""Noisy images that log Z is estimated on; at t_max it hardly matters what is under the noise."""
DRAWS = 4
"""Noises that an image's effective dimension is averaged over."""


def wanted_size(
    model: ImageModel, given: Sequence[Path], left_out: Path, *, resize: bool, normalize: bool
) -> Size:
    """The one size of the images of a scoring.

    It is the training images' size, where log Z is known. If log Z may be estimated (`normalize`) or is zero
    by the energy's form, and no part of the model is tied to one size, it is the size of the first image.
    """
    energy = model.score_model
    if not isinstance(energy, EnergyModel):
        raise NormalizationError("this model is a denoiser: it has no energy and no likelihood")
    if not isinstance(energy, MappedEnergy):
        raise ScoreError("the model is of vectors, not of images: nothing to score with it")
    network = getattr(energy, "network", None)
    unet = network if isinstance(network, UNet) else None
    normalize = normalize or normalized_by_form(energy)
    # Released networks alone are of any size, and all of them are U-Nets.
    channels = model.image_shape[0] if model.image_shape is not None else unet.channels if unet else 0
    if channels not in (1, 3):
        raise ScoreError(f"the network takes images of {channels} channels, neither gray nor colour")
    if model.log_normalizer is None and not normalize:
        raise NormalizationError(
            "the model's normalization is not known yet, so its energies are no probabilities: train until "
            "the first validation, or estimate it on the images to be scored with --normalize"
        )
    one_size = any(isinstance(part, StationaryGaussian) for part in energy.modules())
    if model.image_shape is not None and (one_size or resize or not normalize):
        other = (
            ", and the only one that it knows" if one_size else "; --normalize estimates log Z for another"
        )
        hint = f", the size that the model was trained on{other}; --resize crops and resizes"
        return Size(*model.image_shape, resize, hint)
    height, width = first_size(given, left_out)
    divisor = unet.size_divisor if unet is not None else 1
    if height % divisor or width % divisor:
        raise ScoreError(
            f"{given[0]}: the first image is {width}×{height}; the network takes sides divisible by {divisor}"
        )
    hint = ", as the first one; score other sizes apart, or crop and resize with --resize"
    return Size(channels, height, width, resize, hint)


def normalized(model: ImageModel, images: Tensor, size: Size) -> ImageModel:
    """The model, or one with log Z estimated on uint8 images (B, 3, H, W) if it is unknown for `size`.

    Of an energy that is normalized by its form it is known for every size.
    """
    shape = (size.channels, size.height, size.width)
    same = model.image_shape == shape
    if same and model.log_normalizer is not None:
        return model
    by_form = normalized_by_form(model.score_model)
    sized = ImageModel(
        model.score_model,
        image_shape=shape,
        t_max=model.t_max,
        t_min=model.t_min,
        noisy_entropy=model.noisy_entropy if same else None,
        provenance=model.provenance + ("" if by_form else "; log Z estimated on the images scored"),
    ).eval()
    if by_form:
        return sized
    clean = to_pixels(images, size.channels).repeat(-(-NORMALIZER_NOISES // len(images)), 1, 1, 1)
    sized.normalize(clean[:NORMALIZER_NOISES], batch_size=len(images))
    return sized


def check_level(
    decibels: float, t_max: float, highest: float = 120.0, error: type[DualscoreError] = ScoreError
) -> str:
    """Refuse a `--psnr` that a model trained up to t_max cannot denoise at; returns a line for dry runs."""
    # Beyond 120 dB an image and its noisy version are the same in single precision.
    lowest = psnr(t_max)
    if not lowest <= decibels <= highest:
        raise error(
            f"--psnr {decibels:g}: must be between {lowest:.4g} (the strongest noise in "
            f"training) and {highest:g} dB"
        )
    return f"the effective dimension at {decibels:g} dB"


def effective_dimension(model: ImageModel, clean: Tensor, noise_variances: Sequence[float]) -> Tensor:
    """d_eff(x, t) = E‖x − x̂‖²/t at several noise levels, over noises that depend on the image alone.

    Of clean images x (B, C, H, W) on the 8-bit lattice and K noise variances t in pixel²: the mean over
    `DRAWS` noises, the same at all levels, and its standard error, float64, shape (B, K, 2), on the CPU.
    Source: Guth et al. 2025, arXiv 2506.05310, figure 5.
    """
    keys = [zlib.crc32(image.numpy().tobytes()) for image in to_stored(clean)]
    found = torch.empty(DRAWS, len(clean), len(noise_variances), dtype=torch.float64)
    for draw in range(DRAWS):
        noise = fixed_noise(keys, clean.shape[1:], 0, draw)
        for level, variance in enumerate(noise_variances):
            t = torch.full((len(clean),), variance)
            error = model.denoise(corrupt(clean, noise, t), t, len(clean)).cpu().double() - clean
            found[draw, :, level] = error.square().sum(dim=(1, 2, 3)) / variance
    return torch.stack([found.mean(dim=0), found.std(dim=0) / math.sqrt(DRAWS)], dim=2)


def share_higher(these: Tensor, those: Tensor) -> Tensor:
    """For each of these (n,) the share of those (m,) that are higher, equal ones counting half, float64."""
    rising = those.sort().values
    at_most = torch.searchsorted(rising, these, right=True)
    below = torch.searchsorted(rising, these)
    return 1.0 - 0.5 * (at_most + below).double() / len(those)


@dataclass(frozen=True)
class Reference:
    """Energies U(x, 0) in nats, without log Z, shape (n,), that other images are ranked among."""

    energies: Tensor
    source: str  # the folder of their rows, or the model file
    which: str = "validation images"  # what the images are, for people

    def percentile(self, energy: Tensor) -> Tensor:
        """Percentage of the set that is less probable than images of energies (B,); equals count half."""
        return 100.0 * share_higher(energy.double().cpu(), self.energies.double().cpu())


@dataclass(frozen=True)
class Scores:
    """Scores of a batch, on the CPU."""

    columns: dict[str, Tensor]  # the figures of scores.csv that are known, float64, shape (B,)
    maps: Tensor  # bits of each pixel a channel, float64, shape (B, H, W); their mean is `bits_per_dim`
    pixels: Tensor  # the images as the model saw them, uint8, shape (B, C, H, W)

    def finite(self) -> Tensor:
        """Which images have finite scores, bool, shape (B,)."""
        known = torch.stack([column.isfinite() for column in self.columns.values()]).all(dim=0)
        return known & self.maps.isfinite().flatten(1).all(dim=1)

    def __getitem__(self, chosen: Tensor) -> "Scores":
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Scores(columns, self.maps[chosen], self.pixels[chosen])


def score_batch(
    model: ImageModel, images: Tensor, reference: Reference | None = None, psnr: float | None = None
) -> Scores:
    """Score stored images, uint8 RGB (B, 3, H, W), with a normalized model; gray models see them in gray.

    `psnr` is the noise level of the effective dimension in dB, if it is wanted.
    """
    assert model.image_shape is not None
    assert model.log_normalizer is not None
    channels, height, width = model.image_shape
    clean = to_pixels(images, channels)
    # Score and heat map from one evaluation: the energy is the sum of its pixels.
    maps = model.energy_map(clean, 0.0, len(clean)).double().cpu()
    energy = maps.sum(dim=(1, 2))
    normalized = energy + model.log_normalizer
    columns = {
        "bits_per_dim": model.in_bits_per_dim(normalized, channels * height * width),
        "db_per_dim": decibels_per_dim(-normalized, channels * height * width),
    }
    if reference is not None:
        columns["percentile"] = reference.percentile(energy)
    if psnr is not None:
        found = effective_dimension(model, clean, [variance_at_psnr(psnr)])[:, 0]
        columns["effective_dimension"], columns["effective_dimension_stderr"] = found.unbind(dim=1)
    # A pixel's own share of d is C, so the even share of log Z is that of one pixel too.
    bits = model.in_bits_per_dim(maps + model.log_normalizer / (height * width), channels)
    return Scores(columns, bits, to_stored(clean))
