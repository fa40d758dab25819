"""The effective dimension of images: how much of a neighbourhood a denoiser leaves open."""

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dualscore.images import to_stored
from dualscore.model import ImageModel
from dualscore.noise import corrupt, fixed_noise

DRAWS = 4
"""Noises that an image's effective dimension is the mean of."""


def effective_dimension(model: ImageModel, clean: Tensor, noise_variances: Sequence[float]) -> Tensor:
    """d_eff(x, t) = E‖x − x̂‖²/t at several noise levels, over noises that depend on the image alone.

    An image has the same noises at all levels. Source: Guth et al. 2025, arXiv 2506.05310, figure 5.

    Args:
        model: with a denoiser; on any device.
        clean: images x on the 8-bit lattice, pixels in [0, 1], shape (B, C, H, W), on the CPU.
        noise_variances: K variances t > 0, in pixel².

    Returns:
        The mean over `DRAWS` noises and its standard error, float64, shape (B, K, 2), on the CPU.
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
