"""What samples are drawn with: options, the model, images, a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualscore.devices import allow_tf32, find_device
from dualscore.errors import SamplingError
from dualscore.images import to_pixels
from dualscore.model import ImageModel
from dualscore.model_files.loading import load
from dualscore.noise import psnr, variance_at_psnr
from dualscore.pictures.photographs import read_rgb
from dualscore.sampling import Method
from dualscore.scoring.files import Size, decode
from dualscore.terminal.hints import option


@dataclass(frozen=True)
class Options:
    """How to draw."""

    out: Path
    """Folder for the results."""
    count: int
    """Samples; of each image, where there are images."""
    method: Method
    steps: int
    """Noise levels."""
    seed: int
    device: str
    batch_size: int
    """Images at once."""
    resize: bool = False
    """Crop and resize images of other sizes."""


def open_model(path: Path, options: Options) -> ImageModel:
    """A model of images of one size from a file, on its device; SamplingError for any other model."""
    allow_tf32(False)
    model = load(path)
    check_images(model, path)
    return model.to(find_device(options.device))


def check_images(model: ImageModel, path: Path) -> str:
    """Refuse a model of anything but images of one size; returns their shape, for people."""
    if model.image_shape is None or min(model.image_shape[1:]) == 1:
        raise SamplingError(f"{path}: not a model of images of one size, which this command draws")
    return "×".join(map(str, model.image_shape))


def noise_variance(model: ImageModel, decibels: float) -> float:
    """The noise variance at an input PSNR, in pixel²; SamplingError where a model cannot sample at it."""
    lowest = psnr(model.t_max)
    if not lowest <= decibels <= 55.0:
        raise SamplingError(
            f"{option('--psnr ', 'PSNR=')}{decibels:g}: must be between {lowest:.4g} (the strongest noise in "
            "training) and 55 dB"
        )
    return variance_at_psnr(decibels)


def read_images(model: ImageModel, paths: Sequence[Path], options: Options) -> Tensor:
    """Images as the model sees them, pixels in [0, 1], shape (B, C, H, W)."""
    assert model.image_shape is not None
    channels, height, width = model.image_shape
    size = Size(
        height,
        width,
        options.resize,
        f", the model's size; {option('--resize', 'RESIZE=1')} crops and resizes",
    )
    images = []
    for path in paths:
        try:
            images.append(torch.from_numpy(decode(path, size).copy()))
        except ValueError as error:
            raise SamplingError(f"{path}: {error}") from error
    return to_pixels(torch.stack(images), channels)


def known_pixels(mask: Path | None, height: int, width: int) -> Tensor:
    """Which pixels are known, bool, shape (H, W)."""
    known = torch.ones(height, width, dtype=torch.bool)
    if mask is None:
        known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
        return known
    if not mask.is_file():
        raise SamplingError(f"{mask}: no such file")
    try:
        image = read_rgb(mask).convert("L")
    except ValueError as error:
        raise SamplingError(f"{mask}: {error}") from error
    if image.size != (width, height):
        raise SamplingError(
            f"{mask}: is {image.width}×{image.height}; the model's images are {width}×{height}"
        )
    known = torch.from_numpy(np.asarray(image) < 128)
    if bool(known.all()) or not bool(known.any()):
        raise SamplingError(f"{mask}: must be white where pixels are missing, and black elsewhere")
    return known
