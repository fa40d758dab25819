"""What a causal energy sees of the pixels that come before one: a window, brightness, contrast, borders."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 1.0 / 255.0
NEAR = 2
"""Radius, in pixels, of the part of the window that brightness and contrast are taken from."""
CONTRAST_FLOOR = (2.0 * STEP) ** 2  # below it, in pixel², images are not told apart by contrast


class Surroundings(NamedTuple):
    """What the factors of the P = H·W pixels of B images may see."""

    centred: Tensor  # the window's pixels less the mean of near ones, 0 outside, shape (B, P, C, window)
    mean: Tensor  # of the near pixels, shape (B, P, C)
    contrast: Tensor  # root mean square of the near pixels about their mean, shape (B, P, C)
    about: Tensor
    """Where borders are, brightness, contrast, brightness so far, `rest`: (B, P, 3·radius + 1 + 2C (+ 1))."""
    rest: Tensor | None  # mean of the pixels not seen, where that of all is zero, shape (B, P, 1)
    earlier: Tensor  # the pixels, as later ones and channels see them, shape (B, P, C)


class Whole(NamedTuple):
    """What pixels are looked at from, of B images or of some of their rows: P = rows·W pixels."""

    padded: (
        Tensor  # zeros around the pixels, as later ones see them, shape (B, C, rows + radius, W + 2·radius)
    )
    inside: Tensor  # 1 inside, 0 outside, shape (1, 1, rows + radius, W + 2·radius)
    so_far: Tensor  # mean of all earlier pixels, shape (B, P, C)
    rest: Tensor | None  # as Surroundings has it
    height: int  # rows of a whole image


def look(
    rows: Whole, top: int, noise_variance: Tensor, *, radius: int, means: Tensor, noises: Tensor,
    variance: Tensor,
) -> Surroundings:  # fmt: skip
    """The surroundings of the pixels of some rows, the first of which is `top`.

    Args:
        rows: what they are looked at from.
        top: place of the first of them in the image.
        noise_variance: t in pixel², shape (B,).
        radius: of the window.
        means: of what is seen of images, shape (C,).
        noises: variances of what is seen of noise of variance one, shape (C,).
        variance: of the images' pixels, in pixel².

    Returns:
        What the factors of those pixels may see.
    """
    r, t = radius, noise_variance[:, None, None]
    bottom, width = top + rows.padded.shape[2] - r, rows.padded.shape[3] - 2 * r
    seen = 2 * r * (r + 1)
    window = windows(rows.padded, r)[..., :seen]
    inside = windows(rows.inside, r)[..., :seen]  # (1, P, 1, window)
    close = inside * near(window, r, NEAR)
    count = close.sum(dim=3)
    share = close / count.clamp(min=1.0)[..., None]
    none = (count == 0).to(window.dtype)  # the first pixel
    mean = (window * share).sum(dim=3) + none * means
    centred = (window - mean[..., None]) * inside
    spread = (centred.square() * share).sum(dim=3) + none * variance
    noise = t * noises  # of a difference twice a channel's
    square = spread + CONTRAST_FLOOR + noise
    about = torch.cat(
        [
            borders(top, bottom, width, r, window).expand(len(window), -1, -1),
            (mean - means) / (variance + t).sqrt(),
            0.25 * torch.log(square / (CONTRAST_FLOOR + noise)),
            rows.so_far,
            *([] if rows.rest is None else [(rows.rest - mean) / square.sqrt()]),
        ],
        dim=2,
    )
    earlier = rows.padded[:, :, r:, r : r + width].flatten(2).mT
    return Surroundings(centred, mean, square.sqrt(), about, rows.rest, earlier)


def windows(padded: Tensor, radius: int) -> Tensor:
    """The rows above and the row of each pixel, in raster order, shape (B, P, C, all).

    Of images with `radius` more rows above and columns at both sides, (B, C, rows + radius, W + 2·radius).
    """
    columns = F.unfold(padded, (radius + 1, 2 * radius + 1))
    return columns.view(len(padded), padded.shape[1], -1, columns.shape[2]).permute(0, 3, 1, 2)


def near(like: Tensor, radius: int, reach: int) -> Tensor:
    """1 for the window's pixels that are within `reach`, 0 for others, shape (window,)."""
    rows = torch.arange(-radius, 1, device=like.device)[:, None]
    columns = torch.arange(-radius, radius + 1, device=like.device)
    found = (rows >= -reach) & (columns.abs() <= reach)
    return found.flatten()[: 2 * radius * (radius + 1)].to(like.dtype)


def borders(top: int, bottom: int, width: int, radius: int, like: Tensor) -> Tensor:
    """1 where a border is far, for each distance and side, 0 where it is near, shape (P, 3·radius).

    Of the pixels of rows from `top` to before `bottom`.
    """
    rows, columns = torch.arange(top, bottom, device=like.device), torch.arange(width, device=like.device)
    sides = (
        rows[:, None].expand(bottom - top, width),
        columns.expand(bottom - top, width),
        (width - 1 - columns).expand(bottom - top, width),
    )
    distances = torch.arange(1, radius + 1, device=like.device)
    return torch.cat([side.reshape(-1, 1) >= distances for side in sides], dim=1).to(like.dtype)
