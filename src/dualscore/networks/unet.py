"""The UNet of Guth et al. 2025, with no bias in any convolution.

With the paper's normalization, scaling the input scales the output (up to ε and the noise level), as suits
½⟨y, f(y, t)⟩.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dualscore.networks.convolution import convolve
from dualscore.networks.embedding import NoiseEmbedding
from dualscore.networks.normalization import FeatureNorm, ScalePreservingNorm


class Layer(nn.Module):
    """A convolution, a normalization, then exact GELU.

    With `residual` the input is added where it has the output's shape, and both are divided by √2.
    """

    def __init__(
        self, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: FeatureNorm, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv = convolution
        self.norm = norm
        same_shape = convolution.stride == (1, 1) and convolution.in_channels == convolution.out_channels
        self.residual = residual and same_shape

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map features (B, C, H, W), given an embedding (B, E), to features (B, C', H', W')."""
        activated = self.norm.activate(convolve(self.conv, x), embedding)
        return (x + activated) * math.sqrt(0.5) if self.residual else activated


_same = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
_down = partial(nn.Conv2d, kernel_size=2, stride=2, bias=False)
_up = partial(nn.ConvTranspose2d, kernel_size=2, stride=2, bias=False)


class UNet(nn.Module):
    """f(y, t): images to maps of the same size.

    Args:
        channels: image channels C.
        embedding: how the noise variance is embedded.
        width: channels at the finest scale, w.
        scales: number of encoder and decoder blocks, S.
        layers: convolutions a block, L: one number, or one each for encoder, middle (≥ 2) and decoder.
        output_gain: factor on the last convolution's initial weights.
        hidden_gain: initial value of every norm's gain; with the paper's norm and 1, what reaches the coarse
            scales shrinks by half in every layer.
        norm: makes a normalization of given channels and embedding features.
        residual: whether layers add their input to their output.
        outputs: channels of f(y, t); those of the image where left out.
    """

    def __init__(
        self,
        channels: int,
        embedding: NoiseEmbedding,
        width: int = 64,
        scales: int = 3,
        layers: int | tuple[int, int, int] = 3,
        output_gain: float = 1.0,
        hidden_gain: float = 1.0,
        norm: Callable[[int, int], FeatureNorm] = ScalePreservingNorm,
        residual: bool = False,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        encoder_layers, middle_layers, decoder_layers = (
            (layers, layers, layers) if isinstance(layers, int) else layers
        )
        if min(encoder_layers, middle_layers - 1, decoder_layers, width, scales, channels) < 1:
            raise ValueError(
                "need channels, width, scales and layers ≥ 1, and 2 layers in the middle; got "
                f"channels={channels}, width={width}, scales={scales}, layers={layers}"
            )
        self.channels = channels
        self.size_divisor = 2**scales
        self.embedding = embedding
        features = embedding.features

        def chain(*convolutions: nn.Conv2d | nn.ConvTranspose2d) -> nn.ModuleList:
            return nn.ModuleList(Layer(c, norm(c.out_channels, features), residual) for c in convolutions)

        def repeat(inputs: int, outputs: int, count: int) -> list[nn.Conv2d]:
            return [_same(inputs if i == 0 else outputs, outputs) for i in range(count)]

        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for s in range(scales):
            here = width * 2**s
            decode = repeat(2 * here, here, decoder_layers - 1)
            decoded = here if decode else 2 * here
            if s == 0:
                self.encoder.append(chain(*repeat(channels, here, encoder_layers)))
                self.decoder.append(chain(*decode))
                self.output = _same(decoded, outputs or channels)
            else:
                first = _down(here // 2, here)
                self.encoder.append(chain(first, *repeat(here, here, encoder_layers - 1)))
                self.decoder.append(chain(*decode, _up(decoded, here // 2)))
        coarse = width * 2**scales
        self.middle = chain(
            _down(coarse // 2, coarse), *repeat(coarse, coarse, middle_layers - 2), _up(coarse, coarse // 2)
        )
        with torch.no_grad():
            self.output.weight.mul_(output_gain)
            for layer in (m for m in self.modules() if isinstance(m, Layer)):
                layer.norm.gain.fill_(hidden_gain)

    def forward(self, image: Tensor, noise_variance: Tensor) -> Tensor:
        """Map y (B, C, H, W), H and W divisible by 2^S, and t (B,) in pixel² to f(y, t) (B, outputs, H, W).

        A ValueError refuses images whose channels or size do not fit the network.
        """
        if image.shape[1] != self.channels or any(n % self.size_divisor for n in image.shape[2:]):
            raise ValueError(
                f"the network takes {self.channels}-channel images with sides divisible by "
                f"{self.size_divisor}, got {tuple(image.shape[1:])}"
            )
        embedding = self.embedding(noise_variance, image)

        def run(block: nn.Module, x: Tensor) -> Tensor:
            for layer in block.children():
                x = layer(x, embedding)
            return x

        x, skips = image, []
        for block in self.encoder:
            x = run(block, x)
            skips.append(x)
        x = run(self.middle, x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = run(block, torch.cat([x, skip], dim=1))
        return self.project(x)

    def project(self, features: Tensor) -> Tensor:
        """The last convolution, of features (B, C', H, W) to f(y, t)."""
        return convolve(self.output, features)
