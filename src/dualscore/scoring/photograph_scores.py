"""Scores of whole photographs of one size and kind: code length, heat map, rank among others, bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dualscore.gaussian import LONGEST_SIDE
from dualscore.images import to_pixels
from dualscore.model import ImageModel
from dualscore.model_files.loading import load
from dualscore.noise import variance_at_psnr
from dualscore.scoring.scorer import effective_dimension, share_higher
from dualscore.shipped.boxed import COLOUR, GRAY

NEAREST = 40
"""Reference photographs, nearest in size, that one is ranked among."""
Columns = dict[str, list[float] | list[int] | list[str]]


class PhotographScores(NamedTuple):
    """Of B photographs of H×W pixels."""

    columns: Columns  # of scores.csv, B values each
    maps: NDArray[np.float64]  # bits of each pixel a channel, shape (B, H, W)
    finite: list[bool]


@dataclass(frozen=True)
class PhotographScorer:
    """Scores photographs with an energy that has no size.

    Args:
        model: of any size, normalized by its form.
        name: of the model, for people.
        strata: noise levels of the bound, 0 for none.
        psnr: the noise level of the effective dimension in dB, if it is wanted.
    """

    model: ImageModel
    name: str
    strata: int = 0
    psnr: float | None = None

    @property
    def channels(self) -> int:
        """1 for gray, 3 for colour."""
        assert self.model.image_shape is not None
        return self.model.image_shape[0]

    def __call__(self, images: Tensor) -> PhotographScores:
        """Score stored photographs, uint8 RGB (B, 3, H, W); gray models see them in gray."""
        clean = to_pixels(images, self.channels)
        pixels = clean.shape[2] * clean.shape[3]
        maps = self.model.energy_map(clean, 0.0, len(clean)).double().cpu()
        bits = self.model.in_bits_per_dim(maps.sum(dim=(1, 2)), pixels * self.channels)
        columns: Columns = {
            "width": [clean.shape[3]] * len(clean),
            "height": [clean.shape[2]] * len(clean),
            "model": [self.name] * len(clean),
            "bits_per_dim": bits.tolist(),
            "bytes": (bits * pixels * self.channels / 8.0).tolist(),
        }
        if (among := self._references(pixels)) is not None:
            columns["percentile"] = (100.0 * share_higher(bits, among)).tolist()
            columns["unlike"] = [_unlike(b, float(among.min()), float(among.max())) for b in bits.tolist()]
        if self.strata and max(clean.shape[2:]) <= LONGEST_SIDE:
            columns["bound"] = self.model.bound(clean, self.strata).cpu().tolist()
        if self.psnr is not None:
            found = effective_dimension(self.model, clean, [variance_at_psnr(self.psnr)])[:, 0]
            columns["effective_dimension"] = found[:, 0].tolist()
            columns["effective_dimension_stderr"] = found[:, 1].tolist()
        heat = self.model.in_bits_per_dim(maps, self.channels)
        return PhotographScores(columns, heat.numpy(), bits.isfinite().tolist())

    def _references(self, pixels: int) -> Tensor | None:
        """Bits/dim of the reference photographs that are nearest in size to `pixels`, (n,)."""
        origin = self.model.origin
        if origin is None or origin.references is None:
            return None
        apart = (origin.references[:, 1] / pixels).log().abs()
        nearest = apart.sort(stable=True).indices[:NEAREST]
        return origin.references[nearest, 0]


def _unlike(bits: float, least: float, most: float) -> str:
    """How a photograph is unlike the reference: nothing, or what it has that none of them has."""
    if bits > most:
        return "more bits than any"
    return "fewer bits than any" if bits < least else ""


def named_or_boxed(path: Path | None, model: ImageModel | None) -> list[tuple[str, ImageModel]]:
    """The model at a path, read unless it is given, or without one those in the box: colour, then gray."""
    names = [str(path)] if path is not None else [COLOUR, GRAY]
    return [(name, model or load(name)) for name in names]


def is_gray(pixels: NDArray[np.uint8]) -> bool:
    """Whether red, green and blue of a photograph, (3, H, W), agree in every pixel."""
    return bool((pixels == pixels[:1]).all())


def smooth(heat: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map (H, W) as its means over 3×3 pixels: single pixels' bits are grainy."""
    found: NDArray[np.float64] = F.avg_pool2d(
        torch.from_numpy(heat)[None], 3, stride=1, padding=1, count_include_pad=False
    )[0].numpy()
    return found


def over_photograph(heat: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A heat map (H, W, 3) laid over its photograph, (3, H, W): colours say bits, brightness the picture."""
    light = pixels.astype(np.float32).mean(axis=0)[..., None]
    laid: NDArray[np.uint8] = np.round(0.7 * heat + 0.3 * light).astype(np.uint8)
    return laid


def as_batch(pictures: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Pictures of one size, (3, H, W) each, as a tensor (B, 3, H, W) on a device."""
    return torch.from_numpy(np.stack(pictures)).to(device)
