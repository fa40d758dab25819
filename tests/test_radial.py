"""The radial energy of figure 1."""

import math

import torch

from dualscore.densities import DENSITIES
from dualscore.networks import RadialEnergy


def test_it_is_a_mixture_of_round_gaussians() -> None:
    """With the perceptron replaced by what is right, it is the density itself."""
    for name, variances in (("scale_mixture", [1.0, 16.0]), ("mode_mixture", [0.1, 0.1])):
        density = DENSITIES[name]((1, 1, 20)).double()
        energy = RadialEnergy(density.centers(), 1e-2, 1.0).double()
        weights = density.log_weights

        class Right(torch.nn.Module):
            def __init__(self, variances: list[float], weights: torch.Tensor) -> None:
                super().__init__()
                self.variances, self.log_weights = torch.tensor(variances, dtype=torch.float64), weights

            def forward(self, log_t: torch.Tensor) -> torch.Tensor:
                total = self.variances + log_t.exp() - 1e-2
                b = 0.5 * torch.log(2 * math.pi * total) - self.log_weights / 20
                return torch.cat([-torch.log(2 * total), b], dim=1)

        energy.mlp = Right(variances, weights)  # type: ignore[assignment]
        y = density.sample(40, torch.Generator().manual_seed(0))
        t = torch.logspace(-3, 2, 40, dtype=torch.float64)
        assert torch.allclose(energy(y, t), density(y, t))


def test_its_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    energy = RadialEnergy(torch.tensor([[0.5], [-1.0]]), 1e-2, 1.0, hidden=8, layers=2).double()
    y, t = torch.randn(3, 1, 1, 6, dtype=torch.float64), torch.tensor([0.0, 0.1, 10.0], dtype=torch.float64)
    found = energy.gradients(y, t)
    assert found.noise_variance is not None
    assert found.energy is not None
    assert torch.allclose(found.energy, energy(y, t))
    step = 1e-6
    numeric = (energy(y, t + step) - energy(y, t)) / step
    assert torch.allclose(found.noise_variance, numeric, rtol=1e-3, atol=1e-4)
    moved = torch.zeros_like(y)
    moved[:, 0, 0, 2] = step
    assert torch.allclose(found.image[:, 0, 0, 2], (energy(y + moved, t) - energy(y - moved, t)) / (2 * step))
