"""The perceptron of a factor of the causal energy: what was seen in, a mixture of Gaussians out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ANGLES = 16  # of log_angles, which tell the noise level
WIDTHS = (-2.5, 0.5)  # ln of the components' first standard deviations, in units of the contrast


class MixtureFactor(nn.Module):
    """A perceptron with a linear prediction of the mean beside it; both are told the noise level."""

    def __init__(self, seen: int, about: int, hidden: int, layers: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.first = nn.Linear(seen + about, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.told = nn.Linear(2 * ANGLES, layers * hidden)
        self.mixture = nn.Linear(hidden, 3 * components)
        self.linear = nn.Linear(2 * ANGLES, seen)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.mixture.weight.mul_(0.1)
            self.mixture.bias.zero_()
            self.mixture.bias[-components:] = torch.linspace(*WIDTHS, components)

    def forward(self, window: Tensor, about: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log deviations, in units of the contrast, each of shape (B, P, components).

        From the window (B, P, seen), what else is told of the surroundings (B, P, about), and the noise level
        (B, 2·ANGLES).
        """
        told = self.told(level)[:, None].chunk(len(self.hidden) + 1, dim=2)
        features = F.silu(self.first(torch.cat([window, about], dim=2)) + told[0])
        for layer, shift in zip(self.hidden, told[1:], strict=True):
            features = F.silu(layer(features) + shift)
        log_weights, means, log_deviations = self.mixture(features).chunk(3, dim=2)
        predicted = window @ self.linear(level)[:, :, None]
        return log_weights.log_softmax(dim=2), means + predicted, log_deviations
