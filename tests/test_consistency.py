"""The checks of trust: silent on exact densities, and pointing at the fault of every wrong one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dualscore.densities import GaussianMixture, texture_mixture
from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import Estimate, bits, mean
from dualscore.likelihood.bound import stratified_variances
from dualscore.likelihood.consistency import (
    energy_rises,
    heat_residual,
    rise_from_nothing,
    space_moments,
    steadied,
    time_moments,
)
from dualscore.likelihood.ode import laplacian
from dualscore.likelihood.verdict import TOLERANCE, Check, Word, verdict
from dualscore.measuring.bound_range import Grid
from dualscore.measuring.checks import CALIBRATION, HEAT, IMAGE, RISE, SPACE, TIME, all_checks
from dualscore.measuring.identities import calibration, heat, rises
from dualscore.measuring.measured import Measured
from dualscore.measuring.quantities import noise_levels
from dualscore.measuring.subject import Images, Subject
from dualscore.noise import corrupt, random_signs
from dualscore.objective import space_loss

LEVELS = [10.0 ** (-k / 10) for k in (75, 60, 45, 30, 15, 0, -15)]
SHAPE = (1, 8, 8)
DIMENSION = 64
RANKS = {f"{CALIBRATION}, mean", f"{CALIBRATION}, spread"}


class Wrong(EnergyModel):
    """An energy made of a right one."""

    def __init__(self, right: EnergyModel, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.right, self.change = right, change

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        return self.change(self.right(noisy, noise_variance), noisy, noise_variance)


def measure(model: EnergyModel, density: GaussianMixture, seed: int = 0, images: int = 400) -> Measured:
    """All that checks are made of, on samples of a density."""
    clean = density.sample(images, torch.Generator().manual_seed(seed))
    center, spectrum = density.moments()
    prior = StationaryGaussian(center, spectrum).double()
    t_range = (LEVELS[0], LEVELS[-1])
    subject = Subject(model, prior, None, quantized=False, dequantize=False, t_range=t_range, seed=seed)
    measured = Measured(subject, DIMENSION, Grid(*t_range, 24), LEVELS)
    batch = Images(clean, list(range(images)))
    for stage in (
        rises("val", images, 24, LEVELS[-1]),
        noise_levels(LEVELS, "val", images),
        heat("val", images, LEVELS),
        calibration("val", images, LEVELS),
    ):
        measured.rows[stage.name] = {"position": torch.arange(images), **stage.measure(subject, batch)}
    return measured


def checks(model: EnergyModel, density: GaussianMixture, seed: int = 0, images: int = 400) -> list[Check]:
    """Every check of an energy on samples of a density."""
    return all_checks(measure(model, density, seed, images))


def told(found: list[Check], word: Word = Word.inconsistent) -> set[str]:
    return {check.name for check in found if check.word is word}


@pytest.fixture(scope="module")
def density() -> GaussianMixture:
    return texture_mixture(SHAPE).double()


def test_an_exact_density_is_consistent(density: GaussianMixture) -> None:
    found = gaps(density, density)
    assert verdict(found).startswith("consistent"), verdict(found)
    assert max(abs(gap.gap.value) / gap.gap.stderr for gap in found if gap.gap.stderr > 1e-4) < 4
    # The checks can tell: their errors are small against what they look for.
    assert max(gap.gap.stderr for gap in found) < 2 * TOLERANCE


def test_the_wrong_density_is_consistent_too_and_that_is_what_the_word_means(
    density: GaussianMixture,
) -> None:
    """A Gaussian of the right spectrum is a density: its likelihood is worse, not inconsistent."""
    center, spectrum = density.moments()
    gaussian = GaussianMixture([1.0], [StationaryGaussian(center, spectrum)], SHAPE).double()
    assert verdict(gaps(gaussian, density)).startswith("consistent")


def fade(t: Tensor) -> Tensor:
    return 0.01 / (0.01 + t)


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        # c(t) with the wrong sign, or left over: no image gradient sees it.
        (lambda u, _, t: u + DIMENSION * 0.2 * fade(t), {"energy rise", "heat equation"}),
        (lambda u, _, t: u - DIMENSION * 0.2 * fade(t), {"energy rise", "heat equation"}),
        # One term's scale: the whole energy, or a part of it.
        (lambda u, *_: 1.1 * u, {"energy rise", "heat equation", "log Z"}),
        (lambda u, *_: -u, {"energy rise", "heat equation", "log Z"}),
        (
            lambda u, y, t: u + 0.5 * fade(t) * (y - 0.5).square().sum(dim=(1, 2, 3)) / 0.01,
            {"energy rise", "heat equation"},
        ),
        # Something that only shows at t = 0.
        (lambda u, _, t: u + DIMENSION * 0.1 * (t < 1e-9), {"energy rise"}),
        # A drift at large t.
        (lambda u, _, t: u + DIMENSION * 0.02 * torch.log1p(t), {"log Z", "energy rise", "heat equation"}),
    ],
)
def test_a_wrong_term_changes_the_verdict(
    density: GaussianMixture, change: Callable[[Tensor, Tensor, Tensor], Tensor], checks: set[str]
) -> None:
    found = gaps(Wrong(density, change), density, images=200)
    assert verdict(found).startswith("NOT consistent")
    assert {gap.check for gap in found if not gap.consistent} == checks


def test_the_verdict_names_the_place(density: GaussianMixture) -> None:
    step = Wrong(density, lambda u, _, t: u + DIMENSION * 0.1 * torch.sigmoid(20 * torch.log(t / 3e-3)))
    found = gaps(step, density)
    rises = {gap.where for gap in found if gap.check == "energy rise" and not gap.consistent}
    assert rises == {"30 to 15 dB"}
    assert "energy rise, 30 to 15 dB: +0.1" in verdict(found)


def test_levels_between_the_strata_are_unbiased_too() -> None:
    """Of a Gaussian all is known: levels that are no edges of strata."""
    generator = torch.Generator().manual_seed(0)
    images, width, sigma = 4000, math.log(1e8) / 7, 0.1
    variances = stratified_variances(
        torch.rand(images, 7, generator=generator, dtype=torch.float64), 1e-6, 1e2
    )
    levels = [3e-4, 2e-2, 0.7]
    entropy = torch.tensor([0.5 * DIMENSION * math.log(sigma**2 + t) for t in levels], dtype=torch.float64)
    found = energy_rise_gaps(
        entropy.expand(images, 3), levels, variances, sigma**2 / (sigma**2 + variances), width, DIMENSION
    )
    for gap in found:
        assert abs(gap.gap.value) < 4 * gap.gap.stderr
        assert gap.gap.stderr < 0.05


def test_the_entropy_of_noisy_images_lies_where_it_is_said_to_lie(density: GaussianMixture) -> None:
    center, spectrum = density.moments()
    prior = StationaryGaussian(center, spectrum).double()
    generator = torch.Generator().manual_seed(0)
    for t in (1e-3, 1e-1, 1e1):
        clean = density.sample(20_000, generator)
        noisy = corrupt(
            clean, torch.randn(clean.shape, generator=generator, dtype=clean.dtype), torch.full((20_000,), t)
        )
        entropy = mean(density(noisy, torch.full((20_000,), t, dtype=clean.dtype)))
        high = float(prior.entropy(t))
        low = high - entropy_doubt(prior, t)
        assert low == pytest.approx(noise_entropy(DIMENSION, t))
        assert low - 4 * entropy.stderr < entropy.value < high + 4 * entropy.stderr


def test_the_first_rise_is_integrated_from_far_below_the_lowest_level() -> None:
    """Of a Gaussian all is known: a lowest level above its variance, where d − d_eff is not ∝ t any more."""
    generator = torch.Generator().manual_seed(0)
    images, strata, sigma, level = 4000, 12, 0.01, 1e-3
    uniform = torch.rand(images, strata, generator=generator, dtype=torch.float64)
    variances = stratified_variances(uniform, 1e-8, 1e2)
    space = sigma**2 / (sigma**2 + variances)
    rise = torch.full((images,), 0.5 * DIMENSION * math.log1p(level / sigma**2), dtype=torch.float64)
    width = math.log(1e10) / strata
    gap = first_rise_gap(
        torch.zeros_like(rise), rise, level, variances, space, width, DIMENSION, 1e-8, jumps=False
    )
    assert abs(gap.gap.value) < 4 * gap.gap.stderr + 1e-3
    assert gap.gap.stderr < 0.01
    assert gap.where == "no noise to 30 dB"


def test_what_lies_below_the_first_stratum_is_counted_once() -> None:
    """Of a Gaussian whose variance is twenty times t_min: ½ ln 1.05 nats/dim of the rise lie below t_min."""
    generator = torch.Generator().manual_seed(0)
    images, strata, t_min, level = 20_000, 12, 1e-8, 1e-6
    square = 20 * t_min
    uniform = torch.rand(images, strata, generator=generator, dtype=torch.float64)
    variances = stratified_variances(uniform, t_min, 1e2)
    space = square / (square + variances)
    rise = torch.full((images,), 0.5 * DIMENSION * math.log1p(level / square), dtype=torch.float64)
    width = math.log(1e10) / strata
    gap = first_rise_gap(
        torch.zeros_like(rise), rise, level, variances, space, width, DIMENSION, t_min, jumps=False
    )
    # 1 − d_eff/d = t/(σ² + t) is not quite ∝ t in the first stratum: 15 % of what lies below.
    assert abs(gap.gap.value) < 4 * gap.gap.stderr + 0.15 * 0.5 * math.log(1.05) / math.log(2)
    assert gap.gap.stderr < 5e-3


def test_what_lies_below_the_first_stratum_of_a_density_with_jumps() -> None:
    """Of pixels uniform on a cell: U(y) = −log[(Φ(y/√t) − Φ((y − 1)/√t))], whose score is known."""
    generator = torch.Generator().manual_seed(0)
    images, d, strata, t_min, t_max = 20_000, 64, 12, 1e-4, 1e-1
    level, normal = 1e-2, torch.distributions.Normal(0.0, 1.0)
    clean = torch.rand(images, d, generator=generator, dtype=torch.float64)

    def energy_and_space(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(images, d, generator=generator, dtype=torch.float64)
        sigma = t.sqrt()[:, None]
        left = (clean + sigma * noise) / sigma
        right = left - 1.0 / sigma
        inside = normal.cdf(left) - normal.cdf(right)
        slope = (normal.log_prob(right).exp() - normal.log_prob(left).exp()) / (sigma * inside)  # ∇U
        return -inside.log().sum(dim=1), (sigma * slope - noise).square().mean(dim=1)

    uniform = torch.rand(images, strata, generator=generator, dtype=torch.float64)
    variances = stratified_variances(uniform, t_min, t_max)
    space = torch.stack([energy_and_space(t)[1] for t in variances.unbind(1)], dim=1)
    energy, _ = energy_and_space(torch.full((images,), level, dtype=torch.float64))
    measured = (variances, space, math.log(t_max / t_min) / strata, d, t_min)
    gap = first_rise_gap(torch.zeros_like(energy), energy, level, *measured, jumps=True)
    assert abs(gap.gap.value) < 4 * gap.gap.stderr
    assert gap.gap.stderr < 3e-3
    # As if it were smooth, half of what lies below is missed.
    smooth = first_rise_gap(torch.zeros_like(energy), energy, level, *measured, jumps=False)
    assert smooth.gap.value > gap.gap.value + 8e-3


def test_words() -> None:
    fine, bad = Gap("log Z", "", Estimate(0.01, 0.001)), Gap("ode − bound", "", Estimate(-0.3, 0.01))
    noisy = Gap("energy rise", "15 to 0 dB", Estimate(0.1, 0.05))
    assert fine.consistent
    assert noisy.consistent  # within three standard errors
    assert not bad.consistent
    assert verdict([]) == "not checked"
    assert verdict([fine, noisy]).endswith("largest gap: energy rise, 15 to 0 dB: +0.100 ± 0.050 bits/dim")
    assert verdict([fine, bad]) == "NOT consistent: ode − bound: -0.300 ± 0.010 bits/dim"
    assert verdict([bad] * 7).endswith("and 3 more")
