r"""How noisy an image is: the noise variance under which a normalized energy finds it most probable.

−U(y, t) − log Z is the log-likelihood of t, so t̂ = argmin_t U(y, t), and the curvature of U in ln t is the
inverse of its variance: ½ d for white noise on a known image. The minimum is found by parabolas in ln t, from
the least of some levels, one of which the image's own finest details tell (Donoho and Johnstone 1994). Of
several minima those near it are preferred: levels more than e times smaller or larger have prior odds.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

COARSE, FINE = 9, 4
"""Evaluations of the energy: at levels that are the same for all images but for one, then near the least."""
_PARTS = 4  # of a side: 16 parts of an image are asked how noisy they are
_APART = 0.1  # of ln t, between the last three
EVALUATIONS = COARSE + FINE + 2
_NEAR, _BELOW, _ABOVE = 1.0, 0.4, 0.2
"""In ln t: levels as near as this to what the finest details tell are as likely as that one; the odds of
others fall by e for each such step below and above. Chosen on 150 crops of photographs of no figure here."""
_TO_DECIBELS = 10.0 / math.log(10.0)


class NoiseLevel(NamedTuple):
    """Noise variances of images, (B,), and how well they are known."""

    variance: Tensor
    """In pixel²; NaN where the energy has no minimum within the range of variances."""
    log_stderr: Tensor
    """Standard error of ln t."""

    @property
    def psnr(self) -> Tensor:
        """The same in decibels, −10 log₁₀ t, (B,)."""
        return -_TO_DECIBELS * self.variance.log()

    @property
    def psnr_stderr(self) -> Tensor:
        """The standard error in decibels, (B,)."""
        return _TO_DECIBELS * self.log_stderr

    def __str__(self) -> str:
        """In decibels, an image after another."""
        pairs = zip(self.psnr.tolist(), self.psnr_stderr.tolist(), strict=True)
        return ", ".join(f"{level:.2f} ± {error:.2f} dB" for level, error in pairs)


def noise_range(t_min: float, t_max: float) -> tuple[float, float]:
    """Variances that are looked among, of a model that knows those from t_min to t_max: from 60 to 0 dB."""
    return max(t_min, 1e-6), min(t_max, 1.0)


@torch.no_grad()
def noise_level(
    energy: Callable[[Tensor, Tensor], Tensor],
    noisy: Tensor,
    t_range: tuple[float, float],
    energy_map: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> NoiseLevel:
    """The most probable noise variance of each image, by 15 evaluations of an energy.

    Args:
        energy: U(y, t) in nats, (B,), of images and variances (B,), with one log Z for all t.
        noisy: images y, (B, C, H, W).
        t_range: smallest and largest variance, in pixel².
        energy_map: U split over pixels, (B, H, W), if there is such a split.

    Returns:
        Variances and their errors, float64, (B,): by the curvature at the minimum, by what other levels are
        nearly as probable, and by how far parts of the image disagree, if they can be asked.
    """
    low, high = map(math.log, t_range)

    told, has_details = _finest(noisy).log().clamp(low, high), float(min(noisy.shape[2:]) > 1)

    def against(places: Tensor) -> Tensor:
        return has_details * _unlikely(places - told)

    def at(places: Tensor) -> Tensor:
        return energy(noisy, places.exp().to(noisy)).double() + against(places)

    grid = torch.linspace(low, high, COARSE - 1, dtype=torch.float64, device=noisy.device)
    places = torch.cat([grid.expand(len(noisy), -1), told[:, None]], dim=1).sort(dim=1).values
    values = torch.stack([at(place) for place in places.unbind(1)], dim=1)
    all_places, all_values = places, values
    middle = values.argmin(dim=1).clamp(1, COARSE - 2)
    three = torch.stack([middle - 1, middle, middle + 1], dim=1)
    places, found = places.gather(1, three), values.gather(1, three)
    for _ in range(FINE):
        place = _next(places, found)
        places, found = _least(places, found, place, at(place))
    centre, least = places[:, 1], found[:, 1]
    ends = centre - _APART, centre + _APART
    slopes = None
    if energy_map is None:
        sides = [at(end) - against(end) for end in ends]
    else:
        maps = [energy_map(noisy, end.exp().to(noisy)).double() for end in ends]
        sides = [split.sum(dim=(1, 2)) for split in maps]
        slopes = (maps[1] - maps[0]) / (2.0 * _APART)
    # The error is the energy's alone: where prior odds begin to fall they have an edge, and no curvature.
    curvature = (sides[0] + sides[1] - 2.0 * (least - against(centre))) / _APART**2
    sides = [side + against(end) for side, end in zip(sides, ends, strict=True)]
    bend = (sides[0] + sides[1] - 2.0 * least) / _APART**2
    place = centre - (sides[1] - sides[0]) / (2.0 * _APART * bend)
    widest = (high - low) ** 2 / 12.0  # no less is known than the range
    curvature = curvature.clamp(min=1.0 / widest)
    # Other levels may be as probable: what they add to the variance.
    apart = (all_places - place[:, None]).abs() > 0.5 * (high - low) / (COARSE - 2)
    weights = torch.where(apart, torch.exp(least[:, None] - all_values), 0.0) * (high - low) / (COARSE - 2)
    mass = (2.0 * math.pi / curvature).sqrt()
    spread = (weights * (all_places - place[:, None]).square()).sum(dim=1)
    variance = (mass / curvature + spread) / (mass + weights.sum(dim=1))
    if slopes is not None:
        variance = torch.maximum(variance, _disagreement(slopes) / curvature.square())
    variance = variance.clamp(max=widest)
    known = (bend > 0) & ((place - centre).abs() < 2.0 * _APART) & (place > low) & (place < high)
    return NoiseLevel(*(torch.where(known, found, torch.nan) for found in (place.exp(), variance.sqrt())))


def _disagreement(slopes: Tensor) -> Tensor:
    """Variance of the sum of ∂U/∂ln t over pixels (B, H, W), from that of squares, (B,).

    Of a right energy it is the curvature, as the slope's variance is Fisher's information. Where textures are
    taken for noise parts pull either way, and it is larger. Source: White 1982, the sandwich estimator.
    """
    height, width = (max(1, side // _PARTS) for side in slopes.shape[1:])
    parts = slopes.unfold(1, height, height).unfold(2, width, width).sum(dim=(3, 4)).flatten(1)
    share = slopes[0].numel() / (parts.shape[1] * height * width)  # with the rest at the edge
    return share * parts.shape[1] * parts.var(dim=1) if parts.shape[1] > 1 else parts.new_zeros(len(parts))


def _finest(noisy: Tensor) -> Tensor:
    """A noise variance that the finest diagonal details tell, (B,): mostly noise, of most images."""
    if min(noisy.shape[2:]) < 2:
        return noisy.new_full((len(noisy),), 1e-3).double()
    even = noisy[:, :, : noisy.shape[2] // 2 * 2, : noisy.shape[3] // 2 * 2].double()
    details = 0.5 * (even[:, :, ::2] - even[:, :, 1::2])
    details = (details[..., ::2] - details[..., 1::2]).flatten(1)
    return (details.abs().median(dim=1).values / 0.6745).square().clamp(min=1e-12)


def _unlikely(apart: Tensor) -> Tensor:
    """Nats against levels that are `apart` in ln t from what the finest details tell, (B,)."""
    return (apart - _NEAR).clamp(min=0.0) / _ABOVE + (-apart - _NEAR).clamp(min=0.0) / _BELOW


def _next(places: Tensor, values: Tensor) -> Tensor:
    """Where to look next, (B,): a parabola's least value, apart from what is known, of points (B, 3)."""
    (a, b, c), (fa, fb, fc) = places.unbind(1), values.unbind(1)
    up, down = (b - a) * (fb - fc), (b - c) * (fb - fa)
    vertex = b - 0.5 * ((b - a) * up - (b - c) * down) / (up - down)
    wider = torch.where(b - a > c - b, b - 0.38 * (b - a), b + 0.38 * (c - b))
    vertex = torch.where((vertex > a) & (vertex < c), vertex, wider)
    near = 0.05 * (c - a)
    return torch.where((vertex - b).abs() < near, torch.where(b - a > c - b, b - near, b + near), vertex)


def _least(places: Tensor, values: Tensor, place: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of three points (B, 3) and another (B,) those three, (B, 3), around the least one."""
    places, order = torch.cat([places, place[:, None]], dim=1).sort(dim=1)
    values = torch.cat([values, value[:, None]], dim=1).gather(1, order)
    first = (values.argmin(dim=1) - 1).clamp(0, 1)[:, None]
    three = first + torch.arange(3, device=places.device)
    return places.gather(1, three), values.gather(1, three)
