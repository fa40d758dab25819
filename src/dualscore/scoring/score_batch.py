"""Scores a batch of images: one forward pass for its probability and where that sits."""

import math
from dataclasses import dataclass

from torch import Tensor

from dualscore.images import to_pixels, to_stored
from dualscore.likelihood import bits_per_dim, decibels_per_dim
from dualscore.model import ImageModel
from dualscore.noise import variance_at_psnr
from dualscore.scoring.effective import effective_dimension
from dualscore.scoring.reference import Reference


@dataclass(frozen=True)
class Scores:
    """What is known of a batch; on the CPU."""

    bits: Tensor
    """Bits/dim by the paper's protocol, float64, shape (B,)."""
    decibels: Tensor
    """Log p in dB/dim, float64, shape (B,)."""
    percentile: Tensor | None
    """Share of the validation images that are less probable, in percent, shape (B,)."""
    effective_dimension: Tensor | None
    """E‖x − x̂‖²/t and its standard error over draws, shape (B, 2)."""
    maps: Tensor
    """Bits of each pixel a channel, shape (B, H, W); their mean over H and W is `bits`."""
    pixels: Tensor
    """The images as the model saw them, uint8, shape (B, C, H, W)."""

    def finite(self) -> Tensor:
        """Which images have finite figures, bool, shape (B,)."""
        known = self.bits.isfinite() & self.maps.isfinite().all(dim=2).all(dim=1)
        if self.effective_dimension is not None:
            known = known & self.effective_dimension.isfinite().all(dim=1)
        return known


class Scorer:
    """Scores batches.

    Args:
        model: with a normalization and an image shape.
        reference: what to rank among; None for nothing.
        psnr: noise level of the effective dimension in dB; None to leave it out.
    """

    def __init__(self, model: ImageModel, reference: Reference | None, psnr: float | None) -> None:
        assert model.image_shape is not None
        assert model.log_normalizer is not None
        self.model, self.reference = model, reference
        self.shape, self.log_normalizer = model.image_shape, model.log_normalizer
        self.noise_variance = None if psnr is None else variance_at_psnr(psnr)

    def __call__(self, images: Tensor) -> Scores:
        """Score stored images.

        Args:
            images: uint8 RGB, shape (B, 3, H, W), B ≥ 1; gray models turn them gray as in training.

        Returns:
            Their scores; a figure is not finite where the network's was not.
        """
        clean = to_pixels(images, self.shape[0])
        dimension, pixels = math.prod(self.shape), self.shape[1] * self.shape[2]
        # Figure and heat map from one evaluation: the energy is the sum of its pixels.
        maps = self.model.energy_map(clean, 0.0, len(clean)).double().cpu()
        energy = maps.sum(dim=(1, 2))
        normalized = energy + self.log_normalizer
        percentile = None if self.reference is None else self.reference.percentile(energy)
        effective = None
        if self.noise_variance is not None:
            effective = effective_dimension(self.model, clean, [self.noise_variance])[:, 0]
        return Scores(
            bits_per_dim(normalized, dimension),
            decibels_per_dim(-normalized, dimension),
            percentile,
            effective,
            # A pixel's own share of d is C, so the even share of log Z is that of one pixel too.
            bits_per_dim(maps + self.log_normalizer / pixels, self.shape[0]),
            to_stored(clean),
        )
