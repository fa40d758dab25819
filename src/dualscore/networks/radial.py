"""A small energy for mixtures of round Gaussians, the network of the paper's figure 1."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from dualscore.energy import EnergyModel


class RadialEnergy(EnergyModel):
    """U(y, t) = −ln Σ_k exp(−(a_k ‖y − c_k‖² + d·b_k)), with a_k > 0 and b_k functions of t.

    Right for a mixture of round Gaussians with a_k = 1/2(σ_k²+t) and d·b_k = (d/2) ln 2π(σ_k²+t) − ln w_k.
    A perceptron on ln(t + t_min) gives ln a_k and b_k. It starts with variances from a quarter of the images'
    to all of it: in high dimension a component that wins nowhere would never get a gradient.
    Source: Guth et al. 2025, arXiv 2506.05310, figure 1, where c_k = 0.

    Args:
        centers: c_k, the same at every pixel of a channel, shape (K, C).
        t_min: added to t before the logarithm, in pixel².
        variance: the images' variance, in pixel².
        hidden: width of the perceptron.
        layers: its hidden layers.
    """

    centers: Tensor

    def __init__(
        self, centers: Tensor, t_min: float, variance: float, hidden: int = 256, layers: int = 4
    ) -> None:
        super().__init__()
        self.register_buffer("centers", centers.clone().to(torch.get_default_dtype()))
        self.t_min = t_min
        widths = [1, *[hidden] * layers]
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            blocks += [nn.Linear(inputs, outputs), nn.SiLU()]
        output = nn.Linear(hidden, 2 * len(centers))
        start = variance * torch.logspace(math.log10(0.25), 0.0, len(centers))
        with torch.no_grad():
            output.bias.copy_(torch.cat([-torch.log(2.0 * start), 0.5 * torch.log(2.0 * math.pi * start)]))
        self.mlp = nn.Sequential(*blocks, output)

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) in nats up to one constant, for y (B, C, H, W) and t ≥ 0 (B,), shape (B,)."""
        dimension = noisy[0].numel()
        with torch.autocast(noisy.device.type, enabled=False):
            inputs = torch.log(noise_variance + self.t_min)[:, None]
            log_a, b = self.mlp(inputs).chunk(2, dim=1)
            # ‖y − c‖² = ‖y‖² − 2⟨y, c⟩ + ‖c‖²: one pass over y for all centres.
            pixels = noisy[0, 0].numel()
            channel_sums = noisy.sum(dim=(2, 3))
            shift = pixels * self.centers.square().sum(dim=1) - 2.0 * channel_sums @ self.centers.mT
            squares = noisy.square().sum(dim=(1, 2, 3))[:, None] + shift
            return -torch.logsumexp(-(log_a.exp() * squares + dimension * b), dim=1)
