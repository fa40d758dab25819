r"""A small network with the exact likelihood of 8-bit images: the least that a large model must beat.

The chain rule over pixels in raster order, and over the channels of a pixel in turn:
−log P(x) = −Σ_i log P(x_i | what came before). Of that, the conditional of a level sees a window, the earlier
channels of its own pixel, and where the border is; three hidden layers turn them into a mixture of four
discretized logistics over the grey levels,
P(k) = Σ_j π_j [σ((k + ½ − μ_j)/s_j) − σ((k − ½ − μ_j)/s_j)],
whose lowest and highest level reach to ∓∞. Nothing is bounded or sampled, and the sum over all images is 1.
Source of the mixture: Salimans et al. 2017, PixelCNN++, arXiv 1701.05517, section 2.1.

A window is seen relative to the mean of the nearest seen pixels and in units of their contrast, since
photographs look alike at any brightness and contrast: 0.03 bits/dim on the demo, after the same training.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, relu

from dualscore.likelihood.units import LEVELS

RADIUS, WIDTH, HIDDEN, COMPONENTS = 5, 128, 3, 4
"""The window's radius in pixels; the hidden layers' width and number; logistics in a mixture."""
NEAR = 2  # radius of the part of the window that brightness and contrast are taken from
LOG_SCALES = (-12.0, 4.0)
"""Limits of a logistic's log scale, for pixels in [0, 1]: from far below a step to nearly uniform."""
CHUNK = 2**14  # pixels that energies are computed of at a time, which bounds the memory
BATCH, LEARNING_RATE, WARM_UP, WEIGHT_DECAY = 1024, 4e-3, 100, 0.1
"""Levels a step of training; the rate after the first steps, how many these are, and AdamW's decay."""


class DiscretizedLogistics(NamedTuple):
    """Mixtures of discretized logistics over the levels 0 … K−1."""

    log_weights: Tensor  # log π, shape (…, components)
    means: Tensor  # μ, on the scale where level k is k/(K−1), of the same shape
    log_scales: Tensor  # log s on that scale, of the same shape
    levels: int  # K

    def log_probability(self, level: Tensor) -> Tensor:
        """Logarithm of P of levels of shape (…), in nats, of the same shape.

        With a = (k + ½ − μ)/s and b = (k − ½ − μ)/s, σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b−a)), of which
        nothing cancels however far k is from μ.
        """
        last = self.levels - 1
        inverse = torch.exp(-self.log_scales)
        width = inverse / last
        centred = (level[..., None].to(self.means) / last - self.means) * inverse
        lowest, highest = level[..., None] == 0, level[..., None] == last
        below = torch.where(highest, 0.0, logsigmoid(centred + 0.5 * width))
        above = torch.where(lowest, 0.0, logsigmoid(0.5 * width - centred))
        within = torch.where(lowest | highest, 0.0, torch.log(-torch.expm1(-width)))
        return torch.logsumexp(self.log_weights + below + above + within, dim=-1)


class Context(NamedTuple):
    """What the conditionals of n pixels may see."""

    window: Tensor
    """Seen pixels of the window on the scale of [0, 1], anything outside the image, shape (n, C, window)."""
    inside: Tensor  # which of them lie in the image, shape (n, window)
    border: Tensor
    """1 where a border is far, for each distance and side, 0 where it is near, shape (n, 3·radius)."""
    levels: Tensor  # the pixels themselves, on the scale of [0, 1], shape (n, C)


class CausalMLP(nn.Module):
    """An exact likelihood of images of any size with K grey levels: one small network for each channel."""

    offsets: Tensor
    near: Tensor

    def __init__(self, channels: int, levels: int = LEVELS, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        square = itertools.product(range(-RADIUS, 1), range(-RADIUS, RADIUS + 1))
        seen = [(y, x) for y, x in square if y < 0 or x < 0]
        self.register_buffer("offsets", torch.tensor(seen), persistent=False)
        near = torch.tensor([max(-y, abs(x)) <= NEAR for y, x in seen])
        self.register_buffer("near", near.float(), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        self.conditionals = nn.ModuleList(
            _Conditional(channels * len(seen) + channel, 3 * RADIUS + channels + 1, generator)
            for channel in range(channels)
        )

    def context(self, images: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Context:
        """Look around n pixels of images (N, C, H, W) of integer levels; image, row and column are (n,)."""
        channels, height, width = images.shape[1:]
        rows, columns = row[:, None] + self.offsets[:, 0], column[:, None] + self.offsets[:, 1]
        inside = (rows >= 0) & (columns >= 0) & (columns < width)
        plane = height * width
        first = image * (channels * plane)
        places = torch.where(inside, first[:, None] + rows * width + columns, 0)
        flat = images.reshape(-1)
        colours = torch.arange(channels, device=images.device) * plane
        scale = 1.0 / (self.levels - 1)
        window = flat[places[:, None, :] + colours[:, None]].float() * scale
        own = flat[(first + row * width + column)[:, None] + colours].float() * scale
        steps = torch.arange(1, RADIUS + 1, device=images.device)
        border = torch.cat([side[:, None] >= steps for side in (row, column, width - 1 - column)], dim=1)
        return Context(window, inside, border.float(), own)

    def conditional(self, context: Context, channel: int) -> DiscretizedLogistics:
        """The distribution, (n, components), of a channel of n pixels, given only what came before it."""
        near = self.near * context.inside
        count = near.sum(dim=1)
        some = count > 0
        share = (near / count.clamp(min=1.0)[:, None])[:, None, :]
        mean = torch.where(some[:, None], (context.window * share).sum(dim=2), 0.5)
        centred = (context.window - mean[..., None]) * context.inside[:, None, :]
        variance = (centred.square() * share).sum(dim=2).mean(dim=1) + (2.0 / (self.levels - 1)) ** 2
        contrast = torch.where(some, variance, 1.0 / 16.0).sqrt()[:, None]
        earlier = context.levels[:, :channel] - mean[:, :channel]
        seen = torch.cat([centred.flatten(1), earlier], dim=1) / contrast
        about = torch.cat([context.border, 2.0 * mean - 1.0, 0.5 * contrast.log() + 1.5], dim=1)
        log_weights, means, log_scales = self.conditionals[channel](seen, about).chunk(3, dim=1)
        return DiscretizedLogistics(
            log_weights.log_softmax(dim=1),
            mean[:, channel : channel + 1] + contrast * means,
            (log_scales + contrast.log()).clamp(*LOG_SCALES),
            self.levels,
        )

    def nats(self, context: Context) -> Tensor:
        """−log P of each channel of pixels given what came before, in nats, shape (n, C)."""
        stored = (context.levels * (self.levels - 1)).round()
        found = [
            -self.conditional(context, channel).log_probability(stored[:, channel])
            for channel in range(self.channels)
        ]
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def energy(self, images: Tensor) -> Tensor:
        """−log P(x) in nats, exactly, float64, (B,), of images of integer levels 0 … K−1, (B, C, H, W)."""
        _check(images, self.channels, self.levels)
        height, width = images.shape[2:]
        nats = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        pixels = torch.arange(len(images) * height * width, device=images.device)
        for part in torch.split(pixels, CHUNK):
            image, place = part // (height * width), part % (height * width)
            context = self.context(images, image, place // width, place % width)
            nats.index_add_(0, image, self.nats(context).double().sum(dim=1))
        return nats


class _Conditional(nn.Module):
    """Three hidden layers; a linear prediction of the mean beside them."""

    def __init__(self, seen: int, about: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [seen + about, *[WIDTH] * HIDDEN]
        self.hidden = nn.ModuleList(
            _linear(a, b, math.sqrt(2.0 / a), generator) for a, b in itertools.pairwise(sizes)
        )
        self.mixture = _linear(WIDTH, 3 * COMPONENTS, 0.01, generator)
        self.linear = nn.Parameter(torch.zeros(seen))
        with torch.no_grad():  # from far narrower than the contrast to wider
            self.mixture.bias[-COMPONENTS:] = torch.linspace(-2.0, 1.0, COMPONENTS)

    def forward(self, seen: Tensor, about: Tensor) -> Tensor:
        """Log weights, means and log scales, in units of the contrast, shape (n, 3·components)."""
        hidden = torch.cat([seen, about], dim=1)
        for layer in self.hidden:
            hidden = relu(layer(hidden))
        found: Tensor = self.mixture(hidden)
        predicted = (seen @ self.linear)[:, None].expand(-1, COMPONENTS)
        log_weights, means, log_scales = found.chunk(3, dim=1)
        return torch.cat([log_weights, means + predicted, log_scales], dim=1)


def train_causal(
    images: Tensor,
    *,
    steps: int,
    seed: int,
    levels: int = LEVELS,
    watch: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> CausalMLP:
    """Train on pixels drawn at random from images: AdamW, the learning rate a cosine's fall.

    Images are levels 0 … K−1 of an integer type, shape (N, C, H, W); a ValueError refuses others. A step is
    on `BATCH` levels; `watch` passes the steps on and shows them. The same network for the same arguments and
    threads, on the images' device; the global random numbers are left alone.
    """
    channels, height, width = images.shape[1:]
    model = CausalMLP(channels, levels, seed).to(images.device)
    _check(images, channels, levels)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
    )
    pixels = -(-BATCH // channels)
    for step in watch(iter(range(steps))):
        for group in optimizer.param_groups:
            falling = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = LEARNING_RATE * falling * min(1.0, (step + 1) / WARM_UP)
        image, row, column = (
            torch.randint(bound, (pixels,), generator=generator).to(images.device)
            for bound in (len(images), height, width)
        )
        with torch.enable_grad():
            loss = model.nats(model.context(images, image, row, column)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
    return model.requires_grad_(False).eval()


def _linear(inputs: int, outputs: int, scale: float, generator: torch.Generator) -> nn.Linear:
    """A layer with normal weights and no bias yet, whose making leaves the global random numbers alone."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device=generator.device)
    nn.init.normal_(layer.weight, std=scale, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _check(images: Tensor, channels: int, levels: int) -> None:
    if images.ndim != 4 or not images.numel() or images.shape[1] != channels or images.is_floating_point():
        raise ValueError(
            f"images must be levels of shape (B, {channels}, H, W), "
            f"got {images.dtype} of {tuple(images.shape)}"
        )
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        raise ValueError(f"images must hold levels from 0 to {levels - 1}, got {low} to {high}")
