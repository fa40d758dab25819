"""A potential of how large an image is around each pixel, on logarithmic scales."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualscore.networks.embedding import log_angles

WINDOWS = (1, 3, 7)
"""Sides of the squares, in pixels, over which sizes are taken."""
DETAILS = (3, 7)
"""Sides of the squares whose mean is taken away, which leaves what is finer."""
FLOOR = 1e-4
"""Mean square below which sizes are not told apart: smaller than the noise leaves, whitened."""


class LocalSizes(nn.Module):
    r"""b_i = h(s_i, mean of all s_i, t), s_i the ln of the mean squares around pixel i: a map to be summed.

    Where neighbours predict a pixel to a variance v, −log p holds ½ ln v and its derivative by ln t holds
    ½ t/(v + t): of photographs v spans six decades. A network that normalizes each pixel's features has no
    v left; here a small perceptron, the same at every pixel, is shown its logarithm, of the image and of its
    details, in squares of several sides. It is a function of few numbers, so that the time term, whose
    target is noisy, teaches it in minutes what the large network would learn image by image in hours.

    Args:
        channels: C of the images.
        hidden: width of the perceptron's two hidden layers.
    """

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.angles = 32
        self.first = nn.Linear(channels * (1 + len(DETAILS)) * len(WINDOWS), hidden)
        self.everywhere = nn.Linear(self.first.in_features, hidden, bias=False)
        self.second = nn.Linear(hidden, hidden)
        self.told = nn.Linear(2 * self.angles, 2 * hidden)
        self.last = nn.Linear(hidden, 1)
        # It begins as nothing.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, whitened: Tensor, noise_variance: Tensor) -> Tensor:
        """Nats a pixel, shape (B, 1, H, W), of whitened images w (B, C, H, W) at t (B,) in pixel²."""
        angles = log_angles(noise_variance, self.angles)
        one, two = self.told(torch.cat([angles.cos(), angles.sin()], dim=1))[:, None, None].chunk(2, dim=-1)
        sizes = 0.5 * log_sizes(whitened).movedim(1, -1)
        x = F.silu(self.first(sizes) + self.everywhere(sizes.mean(dim=(1, 2), keepdim=True)) + one)
        x = F.silu(self.second(x) + two)
        nats: Tensor = self.last(x).movedim(-1, 1)
        return nats


def log_sizes(image: Tensor) -> Tensor:
    """Ln of the mean squares of an image (B, C, H, W) and its details around each pixel: (B, 9C, H, W)."""
    parts = [image, *(image - _mean(image, side) for side in DETAILS)]
    return torch.cat([torch.log(_mean(p.square(), side) + FLOOR) for p in parts for side in WINDOWS], dim=1)


def _mean(image: Tensor, side: int) -> Tensor:
    """The mean over the pixels of a square that lie in the image."""
    return F.avg_pool2d(image, side, stride=1, padding=side // 2, count_include_pad=False)
