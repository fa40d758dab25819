"""Other likelihood models of small patches, each trained for the same processor time on the same crops.

    python -m benchmarks.rivals EXPERIMENT [SETTING …] --seconds 180 --images 2000

Every rival has its learning rate chosen among three, in a tenth of the time each, on training crops that it
does not learn from. What it reaches is told on the experiment's validation photographs, with an error over
photographs. The rivals are small, well-known constructions:

- the causal MLP of `evaluate` (a window, a mixture of discretized logistics);
- a PixelCNN with such a mixture: van den Oord et al. 2016, arXiv 1606.05328; Salimans et al. 2017, arXiv
  1701.05517;
- a TarFlow: affine flows by causal transformers over 2×2 patches, in alternating orders (Zhai et al. 2024,
  arXiv 2412.06329), of dequantized images, so that its figure is a bound.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dualscore.assemble import build_datamodule
from dualscore.data.datamodule import ImageDataModule
from dualscore.evaluation.causal import CausalMLP, DiscretizedLogistics
from dualscore.images import dequantize, in_channels
from dualscore.likelihood import Estimate, bits, dequantized_bits_per_dim, mean
from dualscore.likelihood.units import LEVELS
from dualscore.settings.experiment import load_experiment

LEARNED, KEPT_BACK = 100_000, 1_000
"""Training crops that are learned from, and that choose the learning rate."""
RATES = (5e-4, 1.5e-3, 4e-3)


class Rival(nn.Module):
    """Bits/dim of 8-bit gray images, (B,), from their levels, uint8 (B, 1, H, W)."""

    kind = "exact"
    batch = 32

    def bits(self, levels: Tensor) -> Tensor:
        """Of each image, shape (B,)."""
        raise NotImplementedError


class WindowMLP(Rival):
    """The yardstick of `evaluate`, on whole images."""

    batch = 16

    def __init__(self) -> None:
        super().__init__()
        self.model = CausalMLP(1)

    def bits(self, levels: Tensor) -> Tensor:
        """Of each image, shape (B,)."""
        count, _, height, width = levels.shape
        place = torch.arange(levels.numel())
        image, within = place // (height * width), place % (height * width)
        context = self.model.context(levels, image, within // width, within % width)
        return bits(self.model.nats(context).view(count, -1).sum(dim=1), height * width)


class _Masked(nn.Conv2d):
    """A convolution that sees rows above and pixels to the left, and its own pixel unless it is the first."""

    def __init__(self, inputs: int, outputs: int, size: int, *, first: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + (not first) :] = 0.0
        mask[size // 2 + 1 :] = 0.0
        self.register_buffer("mask", mask)

    def forward(self, images: Tensor) -> Tensor:
        """Of (B, C, H, W), the same height and width."""
        return F.conv2d(images, self.weight * self.mask, self.bias, padding=self.padding)


class PixelCNN(Rival):
    """Gated residual blocks of masked convolutions under a mixture of discretized logistics."""

    def __init__(self, width: int = 64, blocks: int = 6, components: int = 5) -> None:
        super().__init__()
        self.first = _Masked(1, width, 7, first=True)
        self.blocks = nn.ModuleList(
            nn.ModuleList([_Masked(width, width, 3, first=False), nn.Conv2d(width, 2 * width, 1)])
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 3 * components, 1)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.bias[-components:] = torch.linspace(-4.0, -1.0, components)

    def mixture(self, levels: Tensor) -> DiscretizedLogistics:
        """The distribution of every pixel given those before it, (B, H, W, components)."""
        features = self.first(levels.float() / 127.5 - 1.0)
        for spread, gates in self.blocks:
            values, gate = gates(F.elu(spread(F.elu(features)))).chunk(2, dim=1)
            features = features + values * gate.sigmoid()
        found = self.last(F.elu(features)).movedim(1, -1)
        log_weights, means, log_scales = found.chunk(3, dim=-1)
        return DiscretizedLogistics(
            log_weights.log_softmax(dim=-1), 0.5 + means, log_scales.clamp(-8.0, 2.0), LEVELS
        )

    def bits(self, levels: Tensor) -> Tensor:
        """Of each image, shape (B,)."""
        return bits(
            -self.mixture(levels).log_probability(levels[:, 0].long()).sum(dim=(1, 2)), levels[0].numel()
        )


class TarFlow(Rival):
    """Four affine flows, each by a causal transformer over patches, every other one from the end."""

    kind = "bound"

    def __init__(self, size: int, flows: int = 4, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.tokens = (size // 2) ** 2
        self.flows = nn.ModuleList()
        for _ in range(flows):
            layer = nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            last = nn.Linear(width, 8)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            parts = {
                "into": nn.Linear(4, width),
                "inside": nn.TransformerEncoder(layer, layers, enable_nested_tensor=False),
                "out": last,
            }
            self.flows.append(nn.ModuleDict(parts))
        self.places = nn.Parameter(0.02 * torch.randn(flows, self.tokens, width))
        self.register_buffer(
            "mask", torch.triu(torch.full((self.tokens, self.tokens), -math.inf), diagonal=1)
        )

    def bits(self, levels: Tensor) -> Tensor:
        """Of each image, shape (B,)."""
        pixels = dequantize(levels.float() / 255.0, torch.rand(levels.shape))
        tokens = F.pixel_unshuffle(2.0 * pixels - 1.0, 2).flatten(2).mT  # (B, tokens, 4)
        stretched = torch.full((len(levels),), levels[0].numel() * math.log(2.0))
        for flow, places in zip(self.flows, self.places, strict=True):
            seen = flow["inside"](flow["into"](tokens) + places, mask=self.mask)
            seen = F.pad(flow["out"](seen)[:, :-1], (0, 0, 1, 0))  # the first token is left as it is
            log_scale, shift = seen.chunk(2, dim=-1)
            log_scale = 3.0 * torch.tanh(log_scale / 3.0)
            tokens = ((tokens - shift) * torch.exp(log_scale)).flip(1)
            stretched = stretched + log_scale.sum(dim=(1, 2))
        normal = 0.5 * (tokens.square() + math.log(2.0 * math.pi)).sum(dim=(1, 2))
        return dequantized_bits_per_dim(normal - stretched, levels[0].numel())


def train(make: Callable[[], Rival], images: Tensor, seconds: float, rate: float) -> tuple[Rival, int]:
    """A rival after so many processor seconds of AdamW, the learning rate a cosine's fall; and its steps."""
    torch.manual_seed(0)
    rival = make()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(rival.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps, start = 0, time.process_time()
    while (share := (time.process_time() - start) / seconds) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * share)) * min(1.0, (steps + 1) / 50)
        chosen = torch.randint(len(images), (rival.batch,), generator=generator)
        loss = rival.bits(images[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rival.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return rival.eval(), steps


@torch.no_grad()
def measure(rival: Rival, images: Tensor) -> Tensor:
    """Bits/dim of each image, (n,)."""
    torch.manual_seed(1)
    return torch.cat([rival.bits(part) for part in images.split(64)]).double()


def crops(data: ImageDataModule, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced gray crops of a split, uint8 (n, 1, H, W), and their places, (n,)."""
    batches = list(data.evenly_spaced(split, count, 1024))
    images = torch.cat([in_channels(batch.image, 1) for batch in batches])
    return images, torch.cat([batch.position for batch in batches])


def main() -> None:
    """Train every rival, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="whose training and validation images, gray")
    parser.add_argument("settings", nargs="*", help="such as data.path=…")
    parser.add_argument("--seconds", type=float, default=180.0, help="processor seconds each (default 180)")
    parser.add_argument("--images", type=int, default=2000, help="validation crops (default 2000)")
    options = parser.parse_args()
    config = load_experiment(options.experiment, options.settings)
    if config.data.channels != 1 or config.data.mean_free or config.data.size % 2 or options.seconds <= 0:
        parser.error("rivals are of gray images of an even side, and need seconds above 0")
    data, size = build_datamodule(config), config.data.size
    learned, _ = crops(data, "train", LEARNED)
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(0))
    few = min(KEPT_BACK, len(learned) // 10)
    chooser, learned = learned[order[:few]], learned[order[few:]]
    shown, positions = crops(data, "val", options.images)
    rivals: dict[str, Callable[[], Rival]] = {
        "causal MLP": WindowMLP, "PixelCNN, logistic mixture": PixelCNN, "TarFlow": lambda: TarFlow(size),
    }  # fmt: skip
    table = Table("model", "weights", "kind", "bits/dim, validation", "learning rate", "steps")
    for name, make in rivals.items():
        tried = {
            rate: float(measure(train(make, learned, options.seconds / 10.0, rate)[0], chooser).mean())
            for rate in RATES
        }
        rate = min(tried, key=lambda r: tried[r] if math.isfinite(tried[r]) else math.inf)
        rival, steps = train(make, learned, options.seconds, rate)
        found: Estimate = mean(measure(rival, shown), data.photographs("val", positions))
        weights = sum(p.numel() for p in rival.parameters())
        table.add_row(name, f"{weights:,}", rival.kind, str(found), f"{rate:g}", f"{steps:,}")
    Console().print(table)
    Console().print(
        f"{options.seconds:g} processor seconds each, {torch.get_num_threads()} threads, seed 0; "
        f"{len(shown):,} crops, ± over photographs"
    )


if __name__ == "__main__":
    main()
