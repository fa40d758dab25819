"""Units, the paper's protocol, and the figures gathered over images."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualscore.baselines import FullGaussian, dequantized_bits_per_dim, gaussian_bits_per_dim
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.images import to_gray, to_pixels
from dualscore.likelihood import bits_per_dim, log_normalizer, noise_entropy, paper_bits_per_dim
from dualscore.metrics import EnergyFigures, ImageFigures, LevelFigures, Moments
from test_gaussian import random_spectrum

CPU = torch.device("cpu")


def test_uniform_noise_costs_eight_bits() -> None:
    """The density of uniform pixels on [0, 1] is 1, so U = 0."""
    assert bits_per_dim(0.0, 3072) == 8.0
    assert bits_per_dim(-3072 * math.log(2), 3072) == pytest.approx(7.0)


def test_the_paper_protocol_removes_any_constant_and_finds_log_z() -> None:
    d, t_max, n = 48, 1e3, 5000
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    clean = 30.0 + torch.randn(n, generator=generator, dtype=torch.float64)
    noisy = 0.5 * z.square().sum(1) + d / 2 * math.log(2 * math.pi * t_max)
    values = []
    for constant in (0.0, 1e4):
        rise = (clean + constant) - (noisy + constant)
        values.append(paper_bits_per_dim(float(rise.mean()), float(rise.var()), n, d, t_max))
        log_z = log_normalizer(float((noisy + constant).mean()), d, t_max)
        assert log_z == pytest.approx(-constant, abs=4 * math.sqrt(d / 2 / n))
    assert values[0].value == pytest.approx(values[1].value)
    truth = 8 + 30 / (d * math.log(2))
    assert abs(values[0].value - truth) < 3 * values[0].stderr
    # Var(rise) = 1 + d/2: the spread of U(x, 0) and that of log Z.
    assert values[0].stderr == pytest.approx(math.sqrt((1 + d / 2) / n) / (d * math.log(2)), rel=0.05)


def test_noise_entropy_is_the_gaussians() -> None:
    normal = torch.distributions.Normal(0.0, math.sqrt(7.0))
    assert noise_entropy(5, 7.0) == pytest.approx(5 * float(normal.entropy()))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.integers(1, 49))
def test_moments_are_those_of_all_values_in_any_batches(values: list[float], split: int) -> None:
    moments = Moments(2)
    kinds = torch.tensor([i % 2 for i in range(len(values))])
    whole = torch.tensor(values, dtype=torch.float64)
    for part in (slice(0, split), slice(split, None)):
        moments.update(kinds[part], whole[part])
    found = moments.compute()
    for kind in (0, 1):
        mine = whole[kinds == kind]
        assert int(found["count"][kind]) == len(mine)
        assert float(found["mean"][kind]) == pytest.approx(float(mine.mean()), rel=1e-9, abs=1e-6)
        if len(mine) > 1:
            assert float(found["variance"][kind]) == pytest.approx(float(mine.var()), rel=1e-6, abs=1e-2)


def test_energy_figures_are_the_papers_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noisy = 100 * torch.randn(40, generator=generator), 7000 + torch.randn(40, generator=generator)
    figures = EnergyFigures(12, 1e3, CPU)
    empty = torch.zeros(0)
    for part in (slice(0, 7), slice(7, 40)):
        figures.update(ImageFigures(clean[part], noisy[part], empty.long(), empty, empty))
    summary = figures.summary()
    assert summary is not None
    rise = clean.double() - noisy.double()
    expected = paper_bits_per_dim(float(rise.mean()), float(rise.var()), 40, 12, 1e3)
    assert summary.images == 40
    assert summary.bits_per_dim.value == pytest.approx(expected.value)
    assert summary.bits_per_dim.stderr == pytest.approx(expected.stderr)
    assert summary.log_normalizer == pytest.approx(log_normalizer(float(noisy.double().mean()), 12, 1e3))


def test_level_figures_turn_losses_into_decibels_and_dimensions() -> None:
    figures = LevelFigures(100, [1e-2, 1.0, 10.0], CPU)
    level = torch.tensor([0, 0, 2])
    figures.update(
        ImageFigures(None, None, level, torch.tensor([0.2, 0.3, 0.01]), torch.tensor([1.0, 3.0, 5.0]))
    )
    low, high = figures.summary()
    assert (low.noise_variance, low.images, low.space_loss, low.time_loss) == (
        1e-2,
        2,
        pytest.approx(0.25),
        2.0,
    )
    assert low.psnr_in == pytest.approx(20.0)
    assert low.psnr_out == pytest.approx(20 - 10 * math.log10(0.25))  # mean squared error t · loss
    assert low.effective_dimension == pytest.approx(25.0)
    assert (high.noise_variance, high.images, high.psnr_in) == (10.0, 1, pytest.approx(-10.0))


def test_gray_is_pillows_gray() -> None:
    import numpy as np
    from PIL import Image

    from fakes import real_images

    colour = real_images(20, 16)
    expected = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in colour]
    assert np.array_equal(to_gray(torch.from_numpy(colour))[:, 0].numpy(), np.stack(expected))
    pixels = to_pixels(torch.from_numpy(colour), 1)
    assert pixels.shape == (20, 1, 16, 16)
    assert float(pixels.max()) <= 1.0


def test_gaussian_baselines_reach_the_entropy_of_gaussian_textures() -> None:
    """8-bit Gaussian images: both fits must cost the entropy of the dequantised texture."""
    spectrum = random_spectrum(1, 8, 8) * 0.02
    truth = StationaryGaussian(torch.tensor([0.5]), spectrum)
    x = truth.sample(6000, torch.Generator().manual_seed(0))
    image = (x * 255).round().clamp(0, 255).to(torch.uint8)
    dequantized = spectrum + QUANTIZATION_VARIANCE * torch.eye(1)[:, :, None, None]
    fitted = StationaryGaussian(torch.tensor([0.5]), dequantized).double()
    exact = float(dequantized_bits_per_dim(fitted.entropy(), 64))
    full = FullGaussian(64)
    for part in image[:4000].split(1000):
        full.add(to_pixels(part, 1))
    full.fit()
    figures = gaussian_bits_per_dim(fitted, full, image[4000:].split(500), 1)
    assert figures["stationary"] == pytest.approx(exact, abs=0.02)
    # 64·65/2 numbers fitted on 4000 images cost a little: about d/(4N ln 2)·(d+3)/d a dimension.
    assert figures["full_covariance"] == pytest.approx(exact + 64 / (4 * 4000 * math.log(2)), abs=0.02)
    assert gaussian_bits_per_dim(fitted, None, image[4000:].split(500), 1)["full_covariance"] is None


def test_the_full_gaussian_is_the_sample_mean_and_covariance() -> None:
    x = torch.rand(50, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = FullGaussian(6)
    full.add(x[:20])
    full.add(x[20:])
    full.fit()
    flat = x.flatten(1)
    covariance = torch.cov(flat.mT, correction=0) + QUANTIZATION_VARIANCE * torch.eye(6, dtype=torch.float64)
    reference = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    assert torch.allclose(full.energy(x), -reference.log_prob(flat))
