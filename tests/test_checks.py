"""The checks on energies that are right, and on ones that are wrong where the mean over images hides it."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dualscore.densities import GaussianMixture, gaussian_textures, texture_mixture
from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian, dct_matrix
from dualscore.measuring.checks import HEAT, IMAGE, ODE, RISE, all_checks, image_figures, image_gaps
from dualscore.measuring.consistency import (
    POINTS,
    aligned_strata,
    energy_deviation,
    linear_deviation,
    rank,
    steadied,
    window,
)
from dualscore.measuring.in_memory import measure
from dualscore.measuring.measured import Measured
from dualscore.measuring.verdict import Check, Word, overall, verdict
from dualscore.noise import corrupt

SHAPE = (1, 8, 8)
DIMENSION = 64
RANGE = (1e-7, 1e2)
DENSITIES: dict[str, Callable[[tuple[int, int, int]], GaussianMixture]] = {
    "gaussian": gaussian_textures,
    "mixture": texture_mixture,
}


class Added(EnergyModel):
    """An energy with something added to it that no right one has."""

    def __init__(self, base: EnergyModel, extra: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.base, self.extra = base, extra

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        return self.base(noisy, noise_variance) + self.extra(noisy - 0.5, noise_variance)


def tilt(direction: Tensor, tau: float) -> Callable[[Tensor, Tensor], Tensor]:
    """v τ/(τ + t) ⟨e, y − μ⟩, v² = 0.8/τ: zero in the mean over images, wrong for each of them."""
    e, v = direction / direction.norm(), math.sqrt(0.8 / tau)
    return lambda y, t: v * tau / (tau + t) * (y * e).sum(dim=(1, 2, 3))


def by_contrast(tau: float, strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A multiple of the image's contrast around its mean over images, at low noise."""
    return lambda y, t: strength * tau / (tau + t) * (y.flatten(1).var(dim=1) - t - 0.0065) / 0.0065


def by_level(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of t alone."""
    return lambda y, t: function(t) + 0.0 * y.sum(dim=(1, 2, 3))


def prior_of(density: GaussianMixture) -> StationaryGaussian:
    mean, spectrum = density.moments()
    return StationaryGaussian(mean, spectrum)


def looked_at(name: str, extra: Callable[[Tensor, Tensor], Tensor] | None, count: int = 400) -> Measured:
    density = DENSITIES[name](SHAPE)
    images = density.sample(count, torch.Generator().manual_seed(1))
    model = density if extra is None else Added(density, extra)
    return measure(model, images, prior_of(density), t_range=RANGE, ode_images=4, chains=0)


def find(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_right_energy_passes_and_is_known_to(name: str) -> None:
    measured = looked_at(name, None)
    checks = all_checks(measured)
    assert overall(checks) is Word.consistent, [str(c) for c in checks if c.word is not Word.consistent]
    one, _, _ = image_gaps(measured)
    # Every image's gap is zero, not only their mean. Without control variates its noise is 0.3 bits/dim.
    assert float(one.abs().mean()) < 0.06
    assert abs(find(checks, RISE).gap.value) < 3 * find(checks, RISE).here + 1e-4
    quintiles = image_figures(measured)["quintiles"]
    assert all(abs(part["value"]) < 0.01 for part in quintiles)


CONSTANT = torch.ones(SHAPE)
STRIPES = (dct_matrix(8)[3][None, None, :].float()).expand(SHAPE)
CHECKERS = torch.outer(dct_matrix(8)[1], dct_matrix(8)[2]).float()[None]


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("tau", [1e-2, 1e-3, 1e-4])
def test_tilts_along_the_constant_image_are_inconsistent(name: str, tau: float) -> None:
    checks = all_checks(looked_at(name, tilt(CONSTANT, tau)))
    assert find(checks, IMAGE).word is Word.inconsistent
    assert find(checks, RISE).word is not Word.inconsistent  # the mean does not see it: that was the fault


@pytest.mark.parametrize(
    "extra",
    [tilt(STRIPES, 1e-4), tilt(CHECKERS, 1e-4), by_contrast(1e-3, 3.0), by_contrast(1e-2, -4.0)],
    ids=["stripes", "checkers", "contrast", "contrast, at more noise"],
)
def test_other_errors_of_mean_zero_are_inconsistent(extra: Callable[[Tensor, Tensor], Tensor]) -> None:
    checks = all_checks(looked_at("mixture", extra))
    assert find(checks, IMAGE).word is Word.inconsistent
    assert overall(checks) is Word.inconsistent


def test_an_error_that_depends_on_the_noise_level_alone_is_seen_in_the_mean() -> None:
    checks = all_checks(
        looked_at("gaussian", lambda y, t: 2.0 * 1e-3 / (1e-3 + t) + 0.0 * y.sum(dim=(1, 2, 3)))
    )
    assert find(checks, RISE).gap.value == pytest.approx(-2.0 / (DIMENSION * math.log(2)), abs=0.005)
    assert find(checks, RISE).word is Word.inconsistent


def test_the_gaps_by_quintile_show_which_images_are_wrong() -> None:
    """An error in proportion to the contrast: faint images too probable, strong ones too improbable."""
    quintiles = image_figures(looked_at("mixture", by_contrast(1e-3, 3.0)))["quintiles"]
    values = [part["value"] for part in quintiles]
    assert min(values[:2]) > 0.02
    assert max(values[3:]) < 0.0
    assert values[-1] < -0.02


def test_a_heat_equation_that_holds_in_the_mean_only_is_seen_at_single_images() -> None:
    checks = [c for c in all_checks(looked_at("gaussian", tilt(CONSTANT, 1e-3))) if c.name == HEAT]
    assert {check.word for check in checks if check.where == "30 dB"} == {Word.inconsistent}
    right = [c for c in all_checks(looked_at("gaussian", None)) if c.name == HEAT]
    assert all(check.size < 1e-3 for check in right)


def test_control_variates_have_mean_zero_for_every_image_and_take_no_bias_in() -> None:
    density = texture_mixture(SHAPE)
    prior, generator = prior_of(density), torch.Generator().manual_seed(0)
    clean = density.sample(1, generator).expand(40_000, *SHAPE)
    noise = torch.randn(clean.shape, generator=generator)
    low, high = 1e-3, 8e-3
    t = low * (high / low) ** torch.rand(len(clean), generator=generator)
    for control in (
        linear_deviation(prior, clean, noise, t, low, high),
        energy_deviation(prior, clean, noise, torch.full_like(t, 3e-3)),
    ):
        error = float(control.std()) / math.sqrt(len(control))
        assert abs(float(control.mean())) < 4 * error
    # The same as the prior's own energy, less its mean.
    level = torch.full_like(t, 3e-3)
    energy = prior(corrupt(clean, noise, level), level).energy.double()
    assert torch.allclose(
        energy - energy.mean(),
        energy_deviation(prior, clean, noise, level),
        atol=4 * float(energy.std()) / 200,
    )
    control = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    values = 3.0 + 2.0 * control + 0.1 * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    found = steadied(values, control, control.clone())
    assert torch.allclose(found.std(dim=0), torch.tensor(0.1, dtype=torch.float64), rtol=0.1)
    assert torch.allclose(found.mean(dim=0), torch.tensor(3.0, dtype=torch.float64), atol=0.01)
    assert torch.equal(steadied(values[:20], control[:20]), values[:20])


def test_strata_are_cut_at_every_level() -> None:
    edges = aligned_strata([1e-7, 1e-6, 3e-2, 1.0], 1.0)
    assert all(any(math.isclose(level, edge) for edge in edges) for level in (1e-7, 1e-6, 3e-2, 1.0))
    logs = [math.log(edge) for edge in edges]
    assert max(b - a for a, b in pairwise(logs)) <= 1.0 + 1e-9
    assert edges == sorted(edges)


def test_ranks_of_the_noise_level_are_uniform_for_a_right_energy_and_tell_a_wrong_one() -> None:
    density = texture_mixture(SHAPE)
    generator = torch.Generator().manual_seed(0)
    count, level = 3000, 1e-2
    grid = window(level, DIMENSION, RANGE)
    assert len(grid) == POINTS
    assert grid[0] < level < grid[-1]
    place = torch.randint(0, POINTS, (count,), generator=generator)
    t = torch.tensor(grid)[place]
    clean = density.sample(count, generator)
    noisy = corrupt(clean, torch.randn(clean.shape, generator=generator), t)
    uniform = torch.rand(count, generator=generator)

    def ranks(model: EnergyModel) -> Tensor:
        found = [model(noisy, torch.full((count,), s)).double() for s in grid]
        return rank(torch.stack(found, dim=1), place, uniform)

    right = ranks(density)
    assert abs(float(right.mean()) - 0.5) < 4 / math.sqrt(12 * count)
    counts = torch.histc(right.float(), bins=10, min=0.0, max=1.0)
    assert float(((counts - count / 10) ** 2 / (count / 10)).sum()) < 27.9  # χ² of 9 at 0.1 %
    leaning = ranks(Added(density, by_level(lambda t: 4.0 * t.log())))
    assert float(leaning.mean()) > 0.6
    # Too sure of the level, one way on half of the images and the other way on the rest.
    sure = ranks(Added(density, lambda y, t: 8.0 * torch.sign(y.mean(dim=(1, 2, 3))) * t.log()))
    assert float((sure - 0.5).square().mean()) > 1 / 12 + 0.03


def test_a_poor_density_is_a_density_and_said_to_be_poor() -> None:
    """The best Gaussian of textures that are none: every identity of densities holds, and its fit is off."""
    density = texture_mixture(SHAPE)
    images = density.sample(800, torch.Generator().manual_seed(1))
    gaussian = GaussianMixture([1.0], [prior_of(density)], SHAPE)
    checks = all_checks(measure(gaussian, images, prior_of(density), t_range=RANGE, ode_images=16))
    assert overall(checks) is Word.consistent
    off = [check for check in checks if check.word is Word.inconsistent]
    assert off
    assert all(check.of_images for check in off)
    line = verdict(checks, DIMENSION, "800 images")
    assert line.startswith("consistent within")
    assert "As a model of these images: " in line
    assert str(max(off, key=lambda check: check.excess)) in line


def test_a_constant_in_the_energy_does_not_change_what_the_ode_is_held_against() -> None:
    """The ODE knows no log Z: the network's energy is normalized before they are compared."""
    right = find(all_checks(looked_at("gaussian", None, 64)), ODE)
    shifted = find(all_checks(looked_at("gaussian", by_level(lambda t: 20.0 + 0.0 * t), 64)), ODE)
    assert shifted.gap.value == pytest.approx(right.gap.value, abs=1e-3)
    assert abs(right.gap.value) < 0.1  # of 20 nats, which are 0.45 bits/dim
