"""The probability-flow ODE against densities that are known."""

import math

import pytest
import torch

from dualscore.densities import GaussianMixture, texture_mixture
from dualscore.energy import EnergyModel, Gradients, ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.ode import laplacian, ode_energy
from dualscore.noise import random_signs
from test_gaussian import random_spectrum


class ScoreOnly(ScoreModel):
    """A denoiser: the score without an energy."""

    def __init__(self, energy: EnergyModel) -> None:
        super().__init__()
        self.energy = energy

    def gradients(self, noisy: torch.Tensor, noise_variance: torch.Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        return Gradients(self.energy.gradients(noisy, noise_variance, time=False).image, None)


def texture(channels: int = 1) -> GaussianMixture:
    spectrum = 0.02 * random_spectrum(channels, 4, 4)
    return GaussianMixture(
        [1.0], [StationaryGaussian(torch.full((channels,), 0.5), spectrum)], (channels, 4, 4)
    )


@pytest.mark.parametrize("denoiser", [False, True])
def test_it_finds_a_gaussians_density(denoiser: bool) -> None:
    density = texture(3).double()
    (prior,) = density.components
    assert isinstance(prior, StationaryGaussian)
    x = density.sample(6, torch.Generator().manual_seed(0))
    signs = torch.stack([random_signs((3, 4, 4), torch.Generator().manual_seed(i)) for i in range(6)])
    model: ScoreModel = ScoreOnly(density) if denoiser else density
    found = ode_energy(
        model, x, prior, prior.synthesize(signs.double()), t_min=1e-8, t_max=1e3, tolerance=1e-6
    )
    exact = density(x, torch.full((6,), 1e-8, dtype=torch.float64))
    # In the eigenbasis a Gaussian's trace is free of noise: nothing but the solver's error remains.
    assert torch.allclose(found.energy, exact, atol=1e-3)
    # In whitened coordinates a Gaussian stands still: steps are as long as they may be, 2 nats of ln t.
    assert found.evaluations < 7 * (math.log(1e11) / 2 + 4)


def test_it_finds_a_mixtures_density() -> None:
    density = texture_mixture((1, 8, 8)).double()
    mean, spectrum = density.moments()
    prior = StationaryGaussian(mean, spectrum).double()
    x = density.sample(48, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    probe = prior.synthesize(torch.stack([random_signs((1, 8, 8), generator) for _ in range(48)]).double())
    found = ode_energy(density, x, prior, probe, t_min=1e-8, t_max=1e2, tolerance=1e-3)
    difference = (found.energy - density(x, torch.zeros(48, dtype=torch.float64))) / (64 * math.log(2))
    stderr = float(difference.std()) / math.sqrt(48)
    assert abs(float(difference.mean())) < 3 * stderr + 1e-3
    assert stderr < 0.02


def test_the_trace_is_unbiased_in_any_basis() -> None:
    density = texture(1).double()
    (prior,) = density.components
    assert isinstance(prior, StationaryGaussian)
    y = density.sample(1, torch.Generator().manual_seed(0))
    t = torch.full((1,), 0.01, dtype=torch.float64)
    exact = float((1 / (prior.eigenvalues + 0.01)).sum())
    generator = torch.Generator().manual_seed(0)
    plain, turned = [], []
    for _ in range(400):
        signs = random_signs((1, 1, 4, 4), generator).double()
        plain.append(float(laplacian(density, y, t, signs)[1]))
        turned.append(float(laplacian(density, y, t, prior.synthesize(signs))[1]))
    values = torch.tensor(plain)
    assert float(values.mean()) == pytest.approx(exact, abs=4 * float(values.std()) / 20)
    assert max(abs(value - exact) for value in turned) < 1e-6 * exact
