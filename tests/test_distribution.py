"""The distribution of log probabilities: the paper's own figures, and answers that are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from dualscore.figures.distribution import distribution
from dualscore.gaussian import StationaryGaussian
from test_gaussian import random_spectrum
from workspace import ROOT

RELEASED = ROOT.parent / "shared" / "paper" / "imagenet64_gray_val_energies.npy"
NAT_IN_DECIBELS = 10 / math.log(10)


def released_energies(path: Path = RELEASED) -> torch.Tensor:
    if not path.exists():
        pytest.skip(f"{path.name}, the released energies of the paper's 50,000 validation images, is absent")
    return torch.from_numpy(np.load(path, allow_pickle=False))


def test_the_released_energies_have_the_published_distribution() -> None:
    """Guth et al. 2025, figure 3."""
    found = distribution(released_energies(), 4096)
    assert len(found.decibels) == 50_000
    assert found.median == pytest.approx(10.67, abs=0.01)
    assert found.mean == pytest.approx(11.43, abs=0.01)
    assert found.sd == pytest.approx(4.17, abs=0.01)
    assert found.gumbel.location == pytest.approx(9.57, abs=0.01)
    assert found.gumbel.scale == pytest.approx(3.17, abs=0.01)
    assert float(found.decibels.min()) == pytest.approx(2.55, abs=0.01)
    assert float(found.decibels.max()) == pytest.approx(36.95, abs=0.01)
    assert float(found.bits.mean()) == pytest.approx(4.205, abs=0.001)


def test_a_gumbel_sample_gives_its_parameters_back() -> None:
    location, scale, count, d = 9.0, 3.0, 40_000, 100
    sample = stats.gumbel_r.rvs(location, scale, size=count, random_state=np.random.default_rng(0))
    found = distribution(torch.from_numpy(-sample * d / NAT_IN_DECIBELS), d)
    assert np.allclose(found.decibels.numpy(), sample)
    # Standard errors of the maximum likelihood: 1.053 and 0.780 scales over √n.
    assert found.gumbel.location == pytest.approx(location, abs=4 * 1.053 * scale / math.sqrt(count))
    assert found.gumbel.scale == pytest.approx(scale, abs=4 * 0.780 * scale / math.sqrt(count))
    # The maximum of the likelihood satisfies mean(v) − Σ v e^(−v/β)/Σ e^(−v/β) = β.
    weights = np.exp(-sample / found.gumbel.scale)
    assert sample.mean() - (sample * weights).sum() / weights.sum() == pytest.approx(
        found.gumbel.scale, rel=1e-5
    )
    assert found.mean == pytest.approx(location + np.euler_gamma * scale, abs=0.1)
    assert found.sd == pytest.approx(math.pi * scale / math.sqrt(6), rel=0.03)


def test_a_constant_shifts_every_figure_and_widens_none() -> None:
    energies, d = 300 * torch.randn(1000, generator=torch.Generator().manual_seed(0)).double(), 64
    one, other = distribution(energies, d), distribution(energies + 2 * d * math.log(2), d)
    assert torch.allclose(other.bits, one.bits + 2)
    shift = -2 * math.log(2) * NAT_IN_DECIBELS
    assert other.median == pytest.approx(one.median + shift)
    assert other.mean == pytest.approx(one.mean + shift)
    assert other.gumbel.location == pytest.approx(one.gumbel.location + shift, rel=1e-5)
    assert other.sd == pytest.approx(one.sd)
    assert other.gumbel.scale == pytest.approx(one.gumbel.scale, rel=1e-4)


def test_a_gaussians_own_samples_have_its_entropy_and_the_spread_of_a_chi_square() -> None:
    """U = ½ χ²_d + constant, whose mean is the entropy and whose variance is d/2."""
    gaussian = StationaryGaussian(torch.tensor([0.5]), random_spectrum(1, 8, 8)).double()
    count, d = 20_000, 64
    x = gaussian.sample(count, torch.Generator().manual_seed(0))
    found = distribution(gaussian(x, torch.zeros(count, dtype=x.dtype)).energy, d)
    sd = NAT_IN_DECIBELS * math.sqrt(d / 2) / d
    mean = -NAT_IN_DECIBELS * float(gaussian.entropy()) / d
    assert found.sd == pytest.approx(sd, rel=0.03)
    assert found.mean == pytest.approx(mean, abs=4 * sd / math.sqrt(count))
    # The median of χ²_d is d(1 − 2/9d)³.
    median = mean - NAT_IN_DECIBELS * 0.5 * ((1 - 2 / (9 * d)) ** 3 - 1)
    assert found.median == pytest.approx(median, abs=6 * sd / math.sqrt(count))


def test_figures_of_one_number_are_right_in_both_units() -> None:
    found = distribution(torch.tensor([0.0, 10 * math.log(10)], dtype=torch.float64), 10)
    assert found.decibels.tolist() == pytest.approx([0.0, -10.0])
    assert found.bits.tolist() == pytest.approx([8.0, 8 + math.log2(10)])
    assert (found.median, found.mean) == (pytest.approx(-5.0), pytest.approx(-5.0))
    assert found.sd == pytest.approx(math.sqrt(50))


@pytest.mark.parametrize(
    ("energies", "complaint"),
    [([1.0], "2 energies"), ([1.0, math.nan], "1 of 2 energies"), ([1.0, 1.0, 1.0], "the same")],
)
def test_what_has_no_distribution_is_refused(energies: list[float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        distribution(torch.tensor(energies), 4)
