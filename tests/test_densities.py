"""The ground truth itself: exact energies, samples, moments, and the probability of an 8-bit image."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal

from dualscore.densities import (
    DENSITIES,
    GaussianMixture,
    gaussian_textures,
    natural_spectrum,
    texture_mixture,
)
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian, WhiteGaussian
from dualscore.likelihood.ode import laplacian
from dualscore.measuring.consistency import heat_residual
from dualscore.noise import corrupt, random_signs
from test_gaussian import random_spectrum

SHAPES = {"gaussian_textures": (3, 8, 8), "texture_mixture": (3, 8, 8)}


def shape(name: str) -> tuple[int, int, int]:
    return SHAPES.get(name, (1, 1, 12))


def test_a_mixture_is_torchs_mixture() -> None:
    means, variances = [0.2, -1.0, 3.0], [0.5, 1.0, 2.0]
    components = [
        WhiteGaussian(torch.tensor([m]), torch.tensor(v)) for m, v in zip(means, variances, strict=True)
    ]
    mixture = GaussianMixture([1.0, 2.0, 3.0], components, (1, 2, 3)).double()
    y = torch.randn(50, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    t = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for i in range(50):
        scale = (torch.tensor(variances, dtype=torch.float64) + t[i]).sqrt()
        normal = torch.distributions.Independent(
            torch.distributions.Normal(
                torch.tensor(means, dtype=torch.float64)[:, None].expand(3, 6), scale[:, None].expand(3, 6)
            ),
            1,
        )
        weights = torch.distributions.Categorical(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        reference = torch.distributions.MixtureSameFamily(weights, normal)
        expected = -float(reference.log_prob(y[i].flatten()))
        assert float(mixture(y[i : i + 1], t[i : i + 1])) == pytest.approx(expected)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_have_the_moments(name: str) -> None:
    density = DENSITIES[name](shape(name)).double()
    x = density.sample(20_000, torch.Generator().manual_seed(0))
    mean, spectrum = density.moments()
    gaussian = StationaryGaussian(mean, spectrum).double()
    assert torch.allclose(x.mean(dim=(0, 2, 3)), mean, atol=4 * math.sqrt(float(spectrum.max()) / 20_000))
    power = gaussian.analyze(x - mean[:, None, None]).square().mean(dim=0)
    assert torch.allclose(power, gaussian.eigenvalues, rtol=0.1)


@pytest.mark.parametrize("name", DENSITIES)
def test_energies_solve_the_heat_equation(name: str) -> None:
    density = DENSITIES[name](shape(name)).double()
    generator = torch.Generator().manual_seed(0)
    clean = density.sample(64, generator)
    d = clean[0].numel()
    t = torch.logspace(-5, 2, 64, dtype=torch.float64)
    noisy = corrupt(clean, torch.randn(clean.shape, generator=generator, dtype=torch.float64), t)
    exact = torch.zeros(64, dtype=torch.float64)
    for i in range(d):  # the trace, one direction after another
        probe = torch.zeros_like(clean)
        probe.view(64, d)[:, i] = 1.0
        found, part = laplacian(density, noisy, t, probe, time=True)
        exact += part
    assert float(heat_residual(found, exact, t).abs().max()) < 1e-6  # the axes were rounded to float32
    signs = torch.stack([random_signs(clean.shape[1:], generator) for _ in range(64)]).double()
    _, estimate = laplacian(density, noisy, t, signs)
    assert float(((estimate - exact) * t).mean()) / d == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_probability_of_an_8_bit_image_is_the_energy_at_a_steps_variance(correlation: float) -> None:
    """Against the integral of a two-pixel Gaussian over each cell."""
    step, deviation = 1 / 255, 3 / 255
    covariance = deviation**2 * torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    # Two pixels in a row: the DCT turns (1, ρ; ρ, 1) into diag(1 + ρ, 1 − ρ).
    spectrum = deviation**2 * torch.tensor([1 + correlation, 1 - correlation])[None, None, None]
    texture = StationaryGaussian(torch.tensor([0.5]), spectrum)
    density = GaussianMixture([1.0], [texture], (1, 1, 2)).double()
    cells = multivariate_normal([0.5, 0.5], covariance.numpy(), abseps=1e-13, releps=1e-9)
    worst = total = 0.0
    for i in range(-9, 10, 3):
        for j in range(-9, 10, 3):
            low = [(127 + i - 0.5) * step, (127 + j - 0.5) * step]
            p = cells.cdf([low[0] + step, low[1] + step], lower_limit=low)
            x = torch.tensor([[[[(127 + i) * step, (127 + j) * step]]]], dtype=torch.float64)
            t = torch.full((1,), QUANTIZATION_VARIANCE, dtype=torch.float64)
            energy = float(density(x, t)) - 2 * math.log(step)
            error = energy + math.log(p)
            worst = max(worst, abs(error))
            total += p * 9 * abs(error)
    assert worst < 0.02  # nats, far out in the tails
    assert total < 2e-4


def test_textures_are_as_they_are_described() -> None:
    for density in (gaussian_textures((3, 16, 16)), texture_mixture((3, 16, 16))):
        x = density.sample(2000, torch.Generator().manual_seed(0))
        outside = ((x < 0) | (x > 1)).flatten(1).any(dim=1).double().mean()
        assert float(outside) < 0.02  # those are drawn anew when images are rounded to 8 bits
        # Every component is smooth on the scale of a step, so that rounding costs next to nothing.
        smallest = min(float(c.eigenvalues.min()) for c in density.components)
        assert smallest > 5 / 255**2
    spectrum = natural_spectrum((3, 16, 16), exponent=2.0, floor=0.1)
    assert float(spectrum.diagonal().mean()) == pytest.approx(1.0)
    rows, columns = spectrum[0, 0, 1:, 0], spectrum[0, 0, 0, 1:]
    assert torch.allclose(rows, columns)
    stretched = natural_spectrum((3, 16, 16), exponent=2.0, floor=0.1, stretch=2.0)
    assert bool((stretched[0, 0, 1:, 0] > stretched[0, 0, 0, 1:]).all())


def test_the_texture_mixture_is_far_from_gaussian() -> None:
    density = texture_mixture((3, 16, 16)).double()
    x = density.sample(2000, torch.Generator().manual_seed(0))
    zero = torch.zeros(2000, dtype=torch.float64)
    mean, spectrum = density.moments()
    gaussian = StationaryGaussian(mean, spectrum).double()(x, zero).energy
    assert float((gaussian - density(x, zero)).mean()) / (768 * math.log(2)) > 0.12


def test_impossible_mixtures_are_refused() -> None:
    texture = StationaryGaussian(torch.tensor([0.5]), random_spectrum(1, 4, 4))
    with pytest.raises(ValueError, match="weight > 0"):
        GaussianMixture([1.0, 0.0], [texture, texture], (1, 4, 4))
    with pytest.raises(ValueError, match="for each of 1"):
        GaussianMixture([1.0, 1.0], [texture], (1, 4, 4))
