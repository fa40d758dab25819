"""8-bit images as stored, and pixels as models see them."""

import torch
from torch import Tensor


def to_gray(image: Tensor) -> Tensor:
    """8-bit colour (B, 3, H, W) → 8-bit gray (B, 1, H, W), by ITU-R 601 luma weights, as Pillow's mode L."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=image.device)
    weighted = (image.to(torch.int32) * weights[:, None, None]).sum(dim=1, keepdim=True)
    return ((weighted + 32768) >> 16).to(torch.uint8)


def in_channels(image: Tensor, channels: int) -> Tensor:
    """Stored images, uint8 of shape (B, C, H, W), with the channels wanted: 1 makes gray of colour."""
    return to_gray(image) if channels == 1 and image.shape[1] == 3 else image


LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""The same weights for statistics: gray = Σ weight · channel, up to rounding."""


def to_pixels(image: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels k/255 in [0, 1], (B, channels, H, W), of stored images, uint8 of shape (B, C, H, W).

    One channel makes gray of colour. Samples of a known density may be floats, and stay as they are.
    """
    if image.is_floating_point():
        return image.to(dtype)
    return in_channels(image, channels).to(dtype) / 255.0


def to_stored(pixels: Tensor) -> Tensor:
    """Pixels on the 8-bit lattice as they are stored: the inverse of `to_pixels`, uint8 of the same shape."""
    return (pixels * 255.0).round().to(torch.uint8)


def dequantize(pixels: Tensor, uniform: Tensor, levels: int = 256) -> Tensor:
    """Spread pixels over their quantisation step: x + (u − ½)/(levels − 1), with u in [0, 1) of x's shape."""
    return pixels + (uniform - 0.5) / (levels - 1)


def crops(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of each image, at a place drawn by the generator: (B, C, H, W) → (B, C, side, side)."""
    corners = [
        torch.randint(length - side + 1, (len(images), 1), generator=generator, device=images.device)
        for length in images.shape[2:]
    ]
    along = torch.arange(side, device=images.device)
    rows, columns = (corner + along for corner in corners)
    which = torch.arange(len(images), device=images.device)
    # Indices around the slice: the channels come last.
    return images[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
