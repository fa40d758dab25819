r"""An energy that is normalized by its form: the chain rule over the pixels of a noisy image.

U(y, t) = −Σ_i log p(y_i | y_<i, t), over pixels in raster order and the channels of a pixel in turn. Every
factor is a density of one number, a mixture of Gaussians whose parameters a small perceptron makes of what
came before, so ∫ exp(−U(y, t)) dy = 1 for every t, whatever the weights and the image's size: log Z is zero,
not measured. As y_i has noise of its own, no component is narrower than the noise:
p(y_i | y_<i, t) = Σ_j π_j N(y_i; μ_j, s_j² + t). Of dequantized 8-bit images, where noise
leaves the grey levels' edges, a factor is of the probabilities that this mixture gives the levels
(grey_levels.py), and what is seen of earlier pixels is the level that they had.
Sources: Uria, Murray, Larochelle 2013, RNADE, arXiv 1306.0186, for the mixtures; Meng et al. 2021, arXiv
2103.15089, for chain rules of noisy images.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp

from dualscore.energy import Gradients, MappedEnergy
from dualscore.networks.embedding import log_angles
from dualscore.networks.grey_levels import (
    NEVER_ALONE,
    SHARP,
    SHARP_BEFORE,
    cell_density,
    deviation,
    likely_levels,
    log_sharpness,
)
from dualscore.networks.mixture_factor import ANGLES, MixtureFactor
from dualscore.networks.surroundings import STEP, Surroundings, Whole, look

RADIUS = 5
"""Of the window, in pixels."""
ON_A_CPU, ELSEWHERE = 2**12, 2**20
"""Pixels of a batch that are looked at at once: on a CPU what lies between then stays in its cache."""
WITH_A_GRAPH = 2**15
"""Pixels of a batch whose gradient may keep a graph of them all: 10 kB a pixel."""
GREEN_FIRST = (1, 0, 2)
"""Order of the channels of a pixel in colour."""
NARROWEST = 0.03 * STEP  # standard deviation of a component, beside the noise's
WIDEST = (
    6.0  # ln of a component's standard deviation, in units of the contrast: single precision holds its square
)


class CausalEnergy(MappedEnergy):
    """−log of a product of conditional densities, each of a window and the mean of all that came before.

    A window is seen relative to the mean of the nearest seen pixels and in units of their contrast, as
    photographs look alike at any brightness and contrast. All in single precision, or what the weights have:
    a density that is rounded to half precision is none.

    Args:
        mean: of the images' pixels, per channel, shape (C,).
        variance: of the images' pixels, in pixel², a scalar.
        hidden: width of the perceptron's hidden layers.
        layers: their number.
        radius: of the window, in pixels: 2·radius·(radius + 1) pixels of each channel are seen.
        components: Gaussians of a mixture.
        levels: grey levels of the images, which were dequantized; 0 for pixels that have none.
        mean_free: whether images, of one channel, and their noise are less their mean (mean_free.py): it is
            a density over that subspace, in which the last pixel follows from those before it.
    """

    normalized = True
    mean: Tensor
    variance: Tensor
    grey_levels: Tensor
    sharp: Tensor

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        hidden: int = 128,
        layers: int = 3,
        radius: int = RADIUS,
        components: int = 6,
        levels: int = 0,
        mean_free: bool = False,
    ) -> None:
        super().__init__()
        self.mean_free = mean_free
        # With the weights, so that a model is never read as another density.
        self.register_buffer("grey_levels", torch.tensor(float(levels)))
        self.register_buffer("sharp", torch.tensor(SHARP))
        self._know(levels)
        dtype = torch.get_default_dtype()
        self.register_buffer("mean", mean.clone().to(dtype))
        self.register_buffer("variance", variance.clone().to(dtype))
        self.radius = radius
        window, channels = 2 * radius * (radius + 1), len(mean)
        self.factors = nn.ModuleList(
            MixtureFactor(
                channels * window + before,
                3 * radius + 3 * channels + mean_free,
                hidden,
                layers,
                components,
            )
            for before in range(channels)
        )
        self.colour = channels == 3

    @property
    def means(self) -> Tensor:
        """Of what is seen of pixels, (C,)."""
        return _differences(self.mean, dim=0) if self.colour else self.mean

    @property
    def noises(self) -> Tensor:
        """Variances of what is seen of noise of variance one, (C,)."""
        return self.mean.new_tensor([1.0, 2.0, 2.0]) if self.colour else torch.ones_like(self.mean)

    def _know(self, levels: int) -> None:
        self.levels = levels
        self.spread = 1.0 / (12.0 * (levels - 1) ** 2) if levels else 0.0  # variance of dequantization

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # noqa: ANN401
        """Take the grey levels from the weights; those that were saved before there were any have none.

        Those that were saved before it was said how far noise leaves the cells' edges knew them half as far.
        """
        levels = state_dict.setdefault(f"{prefix}grey_levels", torch.tensor(0.0, device="cpu"))
        state_dict.setdefault(f"{prefix}sharp", torch.tensor(SHARP_BEFORE, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._know(int(levels))

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) = −log p(y | t) in nats, normalized, of y (B, C, H, W) at t ≥ 0 (B,), shape (B,)."""
        return self._nats(noisy, noise_variance).sum(dim=(1, 2))

    def energy_map(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """Nats a pixel given what came before it, shape (B, H, W), whose sum is U: all of it, exactly."""
        return self._nats(noisy, noise_variance).sum(dim=2).view(noisy[:, 0].shape)

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:
        """As of any energy, (B, C, H, W); of large ones, where no graph is wanted, a few rows at a time."""
        pixels = noisy.shape[0] * noisy.shape[2] * noisy.shape[3]
        whole = time or self.mean_free or pixels <= WITH_A_GRAPH
        if not whole and torch.is_grad_enabled():  # a graph of all is kept only for somebody who learns by it
            whole = any(given.requires_grad for given in (noisy, noise_variance, *self.parameters()))
        if whole:
            return super().gradients(noisy, noise_variance, time=time)
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
            return self._gradient_by_rows(noisy, noise_variance)

    def _gradient_by_rows(self, noisy: Tensor, noise_variance: Tensor) -> Gradients:
        """∇_y U, exactly: what all later pixels see of a pixel, by their mean so far, comes last."""
        own_forth: Any = vjp(lambda y: self._seen_as(y, noise_variance), noisy)
        earlier, to_own = own_forth
        sums_forth: Any = vjp(lambda e: self._so_far(e, noise_variance), earlier)
        so_far, to_earlier = sums_forth
        whole = self._whole(earlier, so_far, None)
        level, r, width = self._told(noise_variance), self.radius, noisy.shape[3]
        own_part, sums_part = torch.zeros_like(noisy), torch.zeros_like(so_far)
        padded_part = torch.zeros_like(whole.padded)
        energy = noisy.new_zeros(len(noisy))
        for top, bottom in self._rows(noisy):
            part, around = slice(top * width, bottom * width), slice(top, bottom + r)
            with torch.enable_grad():
                leaves = [
                    values.detach().clone().requires_grad_()
                    for values in (noisy[:, :, top:bottom], whole.padded[:, :, around], so_far[:, part])
                ]
                rows = Whole(leaves[1], whole.inside[:, :, around], leaves[2], None, noisy.shape[2])
                nats = self._of_rows(rows, leaves[0], top, noise_variance, level).sum(dim=(1, 2))
                found = torch.autograd.grad(nats.sum(), leaves)
            energy += nats.detach()
            own_part[:, :, top:bottom] = found[0]
            padded_part[:, :, around] += found[1]
            sums_part[:, part] = found[2]
        of_earlier = padded_part[:, :, r:, r:-r] + to_earlier(sums_part)[0]
        return Gradients(own_part + to_own(of_earlier)[0], None, energy)

    def _nats(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """−log of each factor, (B, P, C), a few rows at a time: what lies between stays in a CPU's cache."""
        with torch.autocast(noisy.device.type, enabled=False):
            earlier = self._seen_as(noisy, noise_variance)
            whole = self._whole(earlier, self._so_far(earlier, noise_variance), self._rest(earlier))
            level, width = self._told(noise_variance), noisy.shape[3]
            parts = []
            for top, bottom in self._rows(noisy):
                part, around = slice(top * width, bottom * width), slice(top, bottom + self.radius)
                rest = None if whole.rest is None else whole.rest[:, part]
                rows = Whole(
                    whole.padded[:, :, around], whole.inside[:, :, around], whole.so_far[:, part], rest,
                    whole.height,
                )  # fmt: skip
                parts.append(self._of_rows(rows, noisy[:, :, top:bottom], top, noise_variance, level))
            found = torch.cat(parts, dim=1)
            if self.mean_free:  # by the last pixel, the volume of the others' cells: √P of the subspace's
                last = found.new_full((len(found), 1, 1), 0.5 * math.log(found.shape[1]))
                found = torch.cat([found[:, :-1], last], dim=1)
            return found

    def _seen_as(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """What later pixels see: the level that they had; of colour green, red − green, blue − green."""
        seen = likely_levels(noisy, noise_variance, self.levels) if self.levels else noisy
        return _differences(seen, dim=1) if self.colour else seen

    def _rows(self, noisy: Tensor) -> Iterator[tuple[int, int]]:
        """First row, and the one after the last, of what is looked at at once."""
        height, width = noisy.shape[2:]
        at_once = ON_A_CPU if noisy.device.type == "cpu" else ELSEWHERE
        rows = max(1, at_once // max(1, len(noisy) * width))
        return ((top, min(height, top + rows)) for top in range(0, height, rows))

    def _told(self, noise_variance: Tensor) -> Tensor:
        angles = log_angles(noise_variance, ANGLES)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def _of_rows(self, rows: Whole, own: Tensor, top: int, noise_variance: Tensor, level: Tensor) -> Tensor:
        """−log of each factor of some rows' pixels, `own` (B, C, rows, W), from what they see: (B, P, C)."""
        seen = look(
            rows, top, noise_variance,
            radius=self.radius, means=self.means, noises=self.noises, variance=self.variance,
        )  # fmt: skip
        own_noise = self._own_noise(noise_variance, top, rows.height, own)
        channels = own.flatten(2)
        order = GREEN_FIRST if self.colour else range(channels.shape[1])
        nats = [
            self._factor(seen, channels[:, channel], place, level, noise_variance, own_noise)
            for place, channel in enumerate(order)
        ]
        return torch.stack(nats, dim=2)

    def _factor(
        self,
        seen: Surroundings,
        own: Tensor,
        place: int,
        level: Tensor,
        noise_variance: Tensor,
        own_noise: Tensor,
    ) -> Tensor:
        """−log p of a channel's pixels, `own`, given what came before them, both (B, P)."""
        earlier = (seen.earlier[..., :place] - seen.mean[..., :place]) / seen.contrast[..., :place]
        window = torch.cat([(seen.centred / seen.contrast[..., None]).flatten(2), earlier], dim=2)
        log_weights, means, log_deviations = self.factors[place](window, seen.about, level)
        centre, contrast = seen.mean[..., place, None], seen.contrast[..., place, None]
        if place:  # green, as far as it is not noise: what is seen of red and blue is their difference to it
            green, scale = seen.mean[..., :1], seen.contrast[..., :1].square()
            share = 1.0 - noise_variance[:, None, None] / scale
            centre = centre + torch.lerp(green, seen.earlier[..., :1], share)
        if seen.rest is not None:  # where noise is all there is, what it leaves for its sum to be zero
            centre = torch.lerp(
                centre,
                seen.rest,
                noise_variance[:, None, None] / (self.variance + noise_variance[:, None, None]),
            )
        means = centre + contrast * means
        deviations = contrast * log_deviations.clamp(max=WIDEST).exp() + NARROWEST
        variances = deviations.square() + self.spread + own_noise[..., None]
        squares = (own[..., None] - means).square() / variances
        logs = log_weights - 0.5 * (squares + torch.log(2.0 * math.pi * variances))
        smooth = torch.logsumexp(logs, dim=2)
        if not self.levels:
            return -smooth
        sigma = deviation(noise_variance, self.levels)
        cells = cell_density(own, sigma, log_weights, means, deviations, self.levels)
        log_share = (math.log1p(-NEVER_ALONE) + log_sharpness(sigma, self.sharp))[:, None]
        both = torch.stack([log_share + cells, torch.log1p(-log_share.exp()) + smooth])
        return -torch.logsumexp(both, dim=0)  # logaddexp's second derivative is NaN where one is far below

    def _own_noise(self, noise_variance: Tensor, top: int, height: int, own: Tensor) -> Tensor:
        """Variance of a pixel's noise given that of those before it, (B, 1) or (B, P)."""
        t = noise_variance[:, None]
        if not self.mean_free:
            return t
        rows, width = own.shape[2:]
        before = torch.arange(top * width, (top + rows) * width, dtype=own.dtype, device=own.device)
        later = height * width - 1.0 - before
        return t * later / (later + 1.0)  # what is left of noise whose sum is zero

    def _so_far(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """The mean of all earlier pixels less that of images, in the deviations it has, (B, P, C)."""
        earlier = noisy.flatten(2).mT
        before = torch.arange(earlier.shape[1], dtype=noisy.dtype, device=noisy.device)[:, None]
        t = noise_variance[:, None, None]
        # In double precision: a photograph's pixels are many.
        total = earlier.double().cumsum(dim=1).to(noisy.dtype) - earlier
        so_far = total / before.clamp(min=1.0) - self.means * (before > 0)
        return so_far / (self.variance + t / before.clamp(min=1.0)).sqrt()

    def _rest(self, noisy: Tensor) -> Tensor | None:
        if not self.mean_free:
            return None
        earlier = noisy.flatten(2).mT
        before = torch.arange(earlier.shape[1], dtype=noisy.dtype, device=noisy.device)[:, None]
        return (earlier - earlier.cumsum(dim=1)) / (earlier.shape[1] - before)

    def _whole(self, noisy: Tensor, so_far: Tensor, rest: Tensor | None) -> Whole:
        padding = (self.radius, self.radius, self.radius, 0)
        inside = F.pad(torch.ones_like(noisy[:1, :1]), padding)
        return Whole(F.pad(noisy, padding), inside, so_far, rest, noisy.shape[2])


def _differences(colours: Tensor, dim: int) -> Tensor:
    """Red, green, blue along a dimension as green, red − green, blue − green."""
    red, green, blue = colours.unbind(dim)
    return torch.stack([green, red - green, blue - green], dim)
