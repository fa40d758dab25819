"""Noise levels, corruption and draws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualscore.noise import (
    corrupt,
    fixed_noise,
    log_uniform,
    mostly_low,
    psnr,
    seeded_generator,
    variance_at_psnr,
)

CPU = torch.device("cpu")


def test_noise_variances_are_log_uniform_within_the_range() -> None:
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    t = log_uniform(uniform, 1e-9, 1e3)
    assert float(t.min()) == pytest.approx(1e-9)
    assert float(t.max()) == pytest.approx(1e3)
    # A third of the decades must hold a third of the draws.
    share = float((t < 1e-5).double().mean())
    assert share == pytest.approx(4 / 12, abs=1e-3)


def test_three_in_five_are_low_and_log_uniform_there_and_above() -> None:
    t = mostly_low(torch.linspace(0, 1, 10_001, dtype=torch.float64), 1e-7, 1e2)
    assert [float(t.min()), float(t.max())] == pytest.approx([1e-7, 1e2])
    shares = [float((t <= limit).double().mean()) for limit in (1e-6, 1e-5, 1e-5 * 10**3.5)]
    assert shares == pytest.approx([0.3, 0.6, 0.8], abs=1e-3)
    assert bool((t.diff() > 0).all())
    uniform = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for t_range in ((1e-7, 1e-5), (1e-5, 1.0)):  # on one side only
        assert torch.equal(mostly_low(uniform, *t_range), log_uniform(uniform, *t_range))


@given(st.floats(0, 1), st.floats(-9, 2), st.floats(0.1, 3))
def test_the_range_is_kept_in_single_precision(u: float, low: float, decades: float) -> None:
    t_min, t_max = 10**low, 10 ** (low + decades)
    t = log_uniform(torch.tensor([u], dtype=torch.float32), t_min, t_max)
    assert torch.tensor(t_min) <= t <= torch.tensor(t_max)


@pytest.mark.parametrize(("t_min", "t_max"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_an_empty_or_negative_range_is_refused(t_min: float, t_max: float) -> None:
    with pytest.raises(ValueError, match="0 < t_min < t_max"):
        log_uniform(torch.zeros(1), t_min, t_max)


def test_corruption_has_the_variance_it_says() -> None:
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 1e-4, 1.0, 100.0])
    noisy = corrupt(torch.full_like(noise, 0.5), noise, t)
    spread = noisy.var(dim=(1, 2, 3))
    assert spread[0] == 0
    assert torch.allclose(spread[1:] / t[1:], torch.ones(3), atol=5 * math.sqrt(2 / 4096))


def test_decibels_and_variances_are_inverse() -> None:
    for decibels, t in ((90.0, 1e-9), (0.0, 1.0), (-30.0, 1e3), (20.0, 1e-2)):
        assert psnr(t) == pytest.approx(decibels)
        assert variance_at_psnr(decibels) == pytest.approx(t)


def test_seeded_draws_depend_on_the_whole_key() -> None:
    keys = [(0, 1, 2), (0, 2, 1), (0, 1), (1, 1, 2), (0, 12), (0, 1, 3)]
    draws = [torch.randn(1000, generator=seeded_generator(CPU, *key)) for key in keys]
    again = [torch.randn(1000, generator=seeded_generator(CPU, *key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(keys))
    assert float(correlation.abs().max()) < 5 / math.sqrt(1000)


def test_an_images_noise_does_not_depend_on_its_batch() -> None:
    together = fixed_noise([7, 3, 11], (1, 4, 4), seed=5)
    alone = torch.cat([fixed_noise([i], (1, 4, 4), seed=5) for i in (7, 3, 11)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, fixed_noise([7, 3, 11], (1, 4, 4), seed=5, draw=1))


def test_fixed_noise_is_standard_normal_over_images() -> None:
    """The draws of different images and draw numbers are independent, seen from their mean square."""
    squares = torch.stack([fixed_noise(range(64), (1, 16, 16), 0, draw).square() for draw in range(16)])
    count = squares.numel()
    assert float(squares.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / count))
    means = squares.mean(dim=(2, 3, 4)).flatten()
    assert float(means.std()) == pytest.approx(math.sqrt(2 / 256), rel=0.15)
