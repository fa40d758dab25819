"""The mass of an energy against energies whose mass is known: right ones, tilted ones, and ghosts."""

import json
import math

import pytest
import torch
from torch import Tensor

from dualscore.densities import DENSITIES, GaussianMixture, mode_mixture, texture_mixture
from dualscore.energy import EnergyModel
from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.normalizer import SLACK, LogMean, Normalization, log_mean
from dualscore.likelihood.units import bits
from dualscore.measuring.mass import (
    LEVELS,
    Mass,
    importance_weights,
    mass_of,
    measured_mass,
    normalizer_variances,
    weigh_chains,
)
from dualscore.sampling.annealed import contrast, levels, start_from, step_down

T_MIN = {"texture_mixture": 1e-6, "gaussian_textures": 1e-6, "scale_mixture": 1e-3}
"""Far below every variance of the density, in pixel²."""
TOLERANCE = 0.02
"""Bits/dim up to which two likelihoods are called the same."""


def known(name: str, shape: tuple[int, int, int]) -> GaussianMixture:
    return DENSITIES[name](shape).double()


def prior_of(density: GaussianMixture) -> StationaryGaussian:
    return StationaryGaussian(*density.moments()).double()


def top(prior: StationaryGaussian) -> float:
    return 10.0 * float(prior.eigenvalues.max())


class Altered(EnergyModel):
    """A density's energy with something added to it."""

    def __init__(self, density: EnergyModel) -> None:
        super().__init__()
        self.density = density

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        return self.alter(self.density(noisy, noise_variance), noisy, noise_variance)

    def alter(self, energy: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError


class Shifted(Altered):
    """U + a + b ln t: the integral of exp(−U) is e^(−a) t^(−b)."""

    def __init__(self, density: EnergyModel, constant: float, slope: float = 0.0) -> None:
        super().__init__(density)
        self.constant, self.slope = constant, slope

    def alter(self, energy: Tensor, noisy: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return energy + self.constant + self.slope * t.log()


class Tilted(Altered):
    """U + v τ/(τ+t) ⟨e, y − μ⟩, e the constant image of norm 1: checks on images pass, wrong by far."""

    def __init__(self, density: EnergyModel, tau: float) -> None:
        super().__init__(density)
        self.tau, self.slope = tau, math.sqrt(0.8 / tau)

    def alter(self, energy: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        along = (noisy - 0.5).sum(dim=(1, 2, 3)) / math.sqrt(noisy[0].numel())
        return energy + self.slope * self.tau / (self.tau + t) * along


class Ghost(Altered):
    """−ln(e^−U + e^(M sigmoid((τ−t)/0.1τ)) N(y; far, (s²+t) I)): e^M of mass that is in no image."""

    def __init__(self, density: EnergyModel, far: float, mass: float, tau: float, spread: float) -> None:
        super().__init__(density)
        self.far, self.mass, self.tau, self.spread = far, mass, tau, spread

    def alter(self, energy: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        stripes = self.far * (1.0 - 2.0 * (torch.arange(noisy.shape[-1]) % 2)).to(noisy)
        variance = self.spread + t
        square = (noisy - 0.5 - stripes).square().sum(dim=(1, 2, 3)) / variance
        ghost = 0.5 * (square + noisy[0].numel() * torch.log(2 * math.pi * variance))
        rise = self.mass * torch.sigmoid((self.tau - t) / (0.1 * self.tau))
        return -torch.logaddexp(-energy, rise - ghost)


def measured(
    model: EnergyModel,
    prior: StationaryGaussian,
    t_min: float,
    *,
    count: int = LEVELS,
    chains: int = 128,
    seed: int = 0,
    batch_size: int = 64,
) -> Mass:
    schedule = levels(top(prior), count, t_min)
    parts = torch.arange(chains).split(batch_size)
    found = [weigh_chains(model, prior, schedule, part.tolist(), seed=seed).log_weights for part in parts]
    return mass_of(torch.cat(found), schedule)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("texture_mixture", (1, 16, 16)), ("gaussian_textures", (3, 8, 8)), ("scale_mixture", (1, 8, 8))],
)
def test_a_density_has_mass_one(name: str, shape: tuple[int, int, int]) -> None:
    density = known(name, shape)
    found = measured(density, prior_of(density), T_MIN[name])
    assert abs(found.at.value) < 0.15
    assert abs(found.at.value) < 5 * found.at.stderr + 1e-3
    assert found.at.share > 0.2
    assert max(map(abs, found.profile)) < 0.3


def test_the_mean_weight_is_unbiased_however_coarse_the_schedule() -> None:
    """Three levels over four decades, too few for even weights; and another mass at each level."""
    density = texture_mixture((1, 2, 2)).double()
    prior, model = prior_of(density), Shifted(density, 1.5, slope=-0.1)
    schedule = levels(1.0, 3, 1e-4)
    truth = -1.5 + 0.1 * math.log(1e-4)
    rows = weigh_chains(model, prior, schedule, range(4000))
    found = mass_of(rows.log_weights, schedule)
    assert 0.05 < found.at.share < 0.95
    assert found.at.stderr < 0.05
    assert found.at.value == pytest.approx(truth, abs=4 * found.at.stderr)
    middle = log_mean(rows.log_weights[:, 1])
    assert middle.value == pytest.approx(-1.5 + 0.1 * math.log(1e-2), abs=4 * middle.stderr)


def test_one_step_down_is_exact_for_a_gaussian_of_any_contrast() -> None:
    """From t to s the weight of each is then that of y_t: no noise is added to it."""
    density = known("gaussian_textures", (3, 8, 8))
    (gaussian,) = density.components
    assert isinstance(gaussian, StationaryGaussian)
    spectrum = torch.einsum("hwck,khw,hwdk->cdhw", gaussian.axes, gaussian.eigenvalues, gaussian.axes)
    wider = StationaryGaussian(gaussian.mean, 9.0 * spectrum).double()
    t, s, generator = 0.05, 1e-5, torch.Generator().manual_seed(0)
    y, _ = start_from(gaussian, t, 20, generator)
    at = torch.full((20,), t, dtype=torch.float64)
    curvature = (1.0 / (gaussian.eigenvalues + t)).mean().expand(20)
    assert contrast(curvature, wider, t).tolist() == pytest.approx([1 / 9] * 20, rel=0.01)
    found = density.gradients(y, at)

    def spread(prior: StationaryGaussian | None) -> float:
        new, ratio = step_down(found, y, (t, s), generator, prior=prior)
        assert found.energy is not None
        increment = found.energy - density(new, torch.full_like(at, s)) + ratio
        return float(increment.abs().max())

    # ΔU comes from each image's ‖∇U‖² and ∂_tU, whose sum is the Gaussian's own: β is found exactly.
    assert spread(wider) < 0.05
    assert spread(None) > 5.0


def test_constants_are_found_exactly_and_at_every_level() -> None:
    density = known("texture_mixture", (1, 8, 8))
    prior = prior_of(density)
    right = measured(density, prior, 1e-6, count=20, chains=32)
    wrong = measured(Shifted(density, -37.25), prior, 1e-6, count=20, chains=32)
    assert wrong.at.value - right.at.value == pytest.approx(37.25, abs=1e-9)
    for one, other in zip(right.profile, wrong.profile, strict=True):
        assert other - one == pytest.approx(37.25, abs=1e-9)
    assert wrong.at.share == pytest.approx(right.at.share)


def test_the_profile_tells_at_which_noise_the_mass_appears() -> None:
    """Of an energy that doubles its mass with each octave that the noise falls."""
    density = known("gaussian_textures", (1, 8, 8))
    found = measured(Shifted(density, 0.0, slope=1.0), prior_of(density), 1e-6, count=30)
    assert found.profile == pytest.approx([-math.log(t) for t in found.levels], abs=0.2)


def test_the_doubled_weight_of_a_far_mode_is_found() -> None:
    density = mode_mixture((1, 2, 2)).double()
    prior = prior_of(density)
    doubled = mode_mixture((1, 2, 2)).double()
    doubled.log_weights[1] += math.log(2.0)
    found = measured(doubled, prior, 1e-3, chains=1000)
    assert found.at.value == pytest.approx(math.log(1.2), abs=4 * found.at.stderr)
    assert found.at.value > 4 * found.at.stderr


@pytest.mark.parametrize("name", ["gaussian_textures", "texture_mixture"])
@pytest.mark.parametrize(("tau", "least"), [(1e-2, 0.02), (1e-3, 0.3), (1e-4, 1.0)])
def test_a_tilt_that_every_check_on_images_passes_is_found(name: str, tau: float, least: float) -> None:
    """Limits in bits/dim, of truths 0.10, 0.98 and 9.85; at 0.10 Markov's ln 20 is most of the rest."""
    density = known(name, (1, 8, 8))
    prior = prior_of(density)
    found = measured(Tilted(density, tau), prior, 1e-6)
    slope = math.sqrt(0.8 / tau) * tau / (tau + 1e-6)
    truth = 0.5 * slope**2 * (float(prior.eigenvalues[0, 0, 0]) + 1e-6)
    assert bits(found.at.limit, 64) > max(least, TOLERANCE)
    if name == "gaussian_textures":  # of a mixture it is larger
        assert found.at.limit < truth


def test_a_ghost_that_annealing_meets_is_found() -> None:
    density = known("texture_mixture", (1, 8, 8))
    prior = prior_of(density)
    found = measured(Ghost(density, far=0.2, mass=30.0, tau=1e-2, spread=0.01), prior, 1e-6)
    assert found.at.value == pytest.approx(30.0, abs=1.0)
    assert found.at.limit > 25.0


def test_a_ghost_that_annealing_never_meets_is_not_found() -> None:
    """The blind spot: no noise carries a chain there, and e^30 of mass go unseen. Nothing here sees them."""
    density = known("texture_mixture", (1, 8, 8))
    prior = prior_of(density)
    found = measured(Ghost(density, far=40.0, mass=30.0, tau=1e-2, spread=0.01), prior, 1e-6)
    assert abs(found.at.value) < 0.3
    assert found.at.share > 0.2


def test_the_limit_is_above_the_truth_in_one_of_twenty_at_most() -> None:
    """Of 400 estimates from two chains each, on a schedule of four levels, so that weights differ by nats."""
    density = known("texture_mixture", (1, 8, 8))
    schedule = levels(5.0, 4, 1e-6)
    rows = weigh_chains(density, prior_of(density), schedule, range(800))
    pairs = rows.log_weights[:, -1].view(400, 2)
    limits = torch.tensor([log_mean(pair).limit for pair in pairs])
    assert float(pairs.std()) > 1.0
    assert float((limits > 0.0).double().mean()) <= 0.05
    assert float((limits + SLACK > 0.0).double().mean()) > 0.05  # without the slack it would not hold


def test_chains_are_the_same_in_any_batch_and_with_any_others() -> None:
    density = known("texture_mixture", (1, 8, 8))
    prior = prior_of(density)

    def run(batch_size: int, seed: int = 0) -> Mass:
        return measured(density, prior, 1e-4, count=10, chains=6, batch_size=batch_size, seed=seed)

    whole = run(6)
    assert run(6) == whole
    assert run(4).at.value == pytest.approx(whole.at.value, abs=1e-9)
    assert run(6, seed=1).at.value != whole.at.value
    schedule = levels(1.0, 5, 1e-4)
    few = weigh_chains(density, prior, schedule, [7, 3])
    many = weigh_chains(density, prior, schedule, range(8))
    assert torch.allclose(few.log_weights, many.log_weights[[7, 3]], atol=1e-9)
    assert torch.allclose(few.images, many.images[[7, 3]])


def test_the_log_mean_its_error_and_its_worth() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    found = log_mean(weights.log() + 1000.0)
    assert found.value == pytest.approx(1000.0 + math.log(3.0))
    assert found.stderr == pytest.approx(float(weights.std()) / 2.0 / 3.0)
    assert found.effective == pytest.approx(144.0 / 50.0)
    assert found.share == pytest.approx(36.0 / 50.0)
    assert found.limit == pytest.approx(found.value - math.log(20.0))
    assert str(LogMean(32.914, 0.706, 2.13, 128)) == (
        "32.91 ± 0.71 nats, ≥ 29.92 (95 %), 2.1 of 128 weights effective"
    )
    with_none = log_mean(torch.tensor([0.0, -math.inf]))
    assert with_none.value == pytest.approx(-math.log(2.0))
    for wrong, words in (
        ([0.0], "at least 2"),
        ([0.0, math.nan], "not finite"),
        ([0.0, math.inf], "not fin"),
    ):
        with pytest.raises(ValueError, match=words):
            log_mean(torch.tensor(wrong))
    with pytest.raises(SamplingError, match="falling"):
        levels(1.0, 5, 1.0)


def test_log_z_at_large_noise_is_found_without_images_and_is_one_number() -> None:
    density = known("texture_mixture", (1, 16, 16))
    prior = prior_of(density)
    variances = normalizer_variances(top(prior))
    assert variances[0] / variances[2] == pytest.approx(10.0)
    weights = importance_weights(Shifted(density, -2.5), prior, variances, range(256))
    for found in map(log_mean, weights.unbind(dim=1)):
        assert found.value == pytest.approx(2.5, abs=4 * found.stderr + 1e-9)
        assert found.stderr < 0.02
        assert found.share > 0.5
    drifting = importance_weights(Shifted(density, 0.0, slope=1.0), prior, variances, range(256))
    rise = log_mean(drifting[:, 2]).value - log_mean(drifting[:, 0]).value
    assert rise == pytest.approx(math.log(10.0), abs=0.05)
    some = importance_weights(density, prior, variances, [5, 200])
    assert torch.allclose(some, weights[[5, 200]] - 2.5, atol=1e-9)


def test_what_is_said_of_a_normalization_is_plain_and_read_back() -> None:
    found = Mass(LogMean(33.5, 0.7, 2.56, 128), [1.0, 1e-6], [0.0, 33.5])
    mass = measured_mass(found, log_normalizer=0.5, dimension=256)
    assert mass.nats == pytest.approx(33.0)
    assert mass.limit == pytest.approx(33.0 - math.log(20.0))
    assert mass.limit_bits == pytest.approx((33.0 - math.log(20.0)) / 256 / math.log(2.0))
    said = Normalization(0.5, 0.07, "256 draws from the anchor at −10 dB", mass)
    assert Normalization.from_plain(json.loads(json.dumps(said.plain()))) == said
    assert str(said) == (
        "log Z 0.50 ± 0.07 nats (256 draws from the anchor at −10 dB); mass at 60 dB e^33.0, at least e^30.0 "
        "(95%) = 0.169 bits/dim; 2% of the chains effective"
    )
    unknown = Normalization(0.5, None, "as published")
    assert str(unknown) == "log Z 0.50 nats (as published); mass not measured"
    assert Normalization.from_plain(unknown.plain()) == unknown
