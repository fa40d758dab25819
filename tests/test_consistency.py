"""The checks of trust: silent on exact densities, and pointing at the fault of every wrong one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dualscore.densities import GaussianMixture, texture_mixture
from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import Estimate, bits, mean, noise_entropy
from dualscore.likelihood.bound import stratified_variances
from dualscore.likelihood.ode import laplacian
from dualscore.measuring.checks import CALIBRATION, HEAT, IMAGE, RISE, SPACE, TIME, all_checks
from dualscore.measuring.consistency import (
    energy_rises,
    heat_residual,
    rise_from_nothing,
    space_moments,
    time_moments,
)
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.quantities import calibration, heat, noise_levels, rise_edges, rises
from dualscore.measuring.subject import Images, Stage, Subject
from dualscore.measuring.verdict import TOLERANCE, Check, Word, verdict
from dualscore.noise import corrupt, random_signs

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
    measured = Measured(subject, DIMENSION, Grid(*t_range, 1), LEVELS)
    batch = Images(clean, list(range(images)))
    for stage in (
        Stage("rises", "val", images, rises, {"edges": rise_edges(measured)}),
        noise_levels(LEVELS, "val", images),
        Stage("heat", "val", images, heat, {"variances": LEVELS}),
        Stage("calibration", "val", images, calibration, {"variances": LEVELS}),
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
    found = checks(density, density)
    assert told(found) == set(), verdict(found, DIMENSION, "")
    assert {RISE, IMAGE, SPACE, HEAT, TIME} | RANKS == {check.name for check in found}
    # Rounding is all that is left of the heat equation's residual at the largest levels.
    known = [check for check in found if check.gap.stderr > 1e-12]
    assert max(abs(check.gap.value) / check.gap.stderr for check in known) < 4
    # The checks can tell: their errors are small against what they look for.
    assert (
        max(check.gap.stderr for check in found if check.unit == "bits/dim" and not check.square) < TOLERANCE
    )
    assert max(check.gap.stderr for check in found if check.name == HEAT) < TOLERANCE**2
    # They are called so where they are known well enough; those of ∂_tU, of 64 pixels, need more images.
    assert {HEAT, SPACE, RISE} | RANKS <= told(found, Word.consistent)
    assert all(check.word is Word.consistent for check in found if check.name in (HEAT, SPACE))


def test_the_wrong_density_is_consistent_too_and_only_its_images_tell_it_apart(
    density: GaussianMixture,
) -> None:
    """A Gaussian of the right spectrum is a density: its likelihood is worse, its identities hold.

    What is regressed on images, ∂_tU and the noise level's rank, is another's at single images.
    """
    center, spectrum = density.moments()
    gaussian = GaussianMixture([1.0], [StationaryGaussian(center, spectrum)], SHAPE).double()
    found = checks(gaussian, density)
    assert told(found) == {TIME, f"{CALIBRATION}, spread"}
    # In the mean over images it is right everywhere, and so is its score's second moment.
    assert all(abs(check.gap.value) < 4 * check.gap.stderr for check in found if check.name in (RISE, SPACE))
    assert {check.word for check in found if check.name == HEAT} == {Word.consistent}


def fade(t: Tensor) -> Tensor:
    return 0.01 / (0.01 + t)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        # c(t) with the wrong sign, or left over: no image gradient sees it.
        (lambda u, _, t: u + DIMENSION * 0.2 * fade(t), {RISE, IMAGE, HEAT}),
        (lambda u, _, t: u - DIMENSION * 0.2 * fade(t), {RISE, IMAGE, HEAT}),
        # One term's scale: the whole energy, or a part of it.
        (lambda u, *_: 1.1 * u, {RISE, IMAGE, HEAT, SPACE, TIME}),
        (lambda u, *_: -u, {RISE, IMAGE, HEAT, SPACE, TIME}),
        (
            lambda u, y, t: u + 0.5 * fade(t) * (y - 0.5).square().sum(dim=(1, 2, 3)) / 0.01,
            {RISE, IMAGE, HEAT, SPACE, TIME},
        ),
        # Something that only shows at t = 0.
        (lambda u, _, t: u + DIMENSION * 0.1 * (t < 1e-9), {RISE, IMAGE}),
        # A drift at large t.
        (lambda u, _, t: u + DIMENSION * 0.02 * torch.log1p(t), {RISE, IMAGE, HEAT}),
    ],
)
def test_a_wrong_term_changes_the_verdict(
    density: GaussianMixture, change: Callable[[Tensor, Tensor, Tensor], Tensor], names: set[str]
) -> None:
    found = checks(Wrong(density, change), density)
    assert verdict(found, DIMENSION, "").startswith("INCONSISTENT")
    # The noise level's likelihood is wrong too, wherever the energy's slope in it is: by how much, its own.
    assert names <= told(found) <= names | {TIME} | RANKS


def test_the_verdict_names_the_place(density: GaussianMixture) -> None:
    step = Wrong(density, lambda u, _, t: u + DIMENSION * 0.1 * torch.sigmoid(20 * torch.log(t / 3e-3)))
    found = checks(step, density)
    rising = {check.where for check in found if check.name == RISE and check.word is Word.inconsistent}
    assert rising == {"30 to 15 dB", "no noise to -15 dB"}
    assert "energy rise, 30 to 15 dB: +0.1" in verdict(found, DIMENSION, "")


def test_an_error_that_cancels_over_images_is_told_image_by_image(density: GaussianMixture) -> None:
    """One half of the images gain what the other half lose: every mean is right."""
    clean = density.sample(400, torch.Generator().manual_seed(0)).mean(dim=(1, 2, 3))
    middle = clean.median()

    def tilt(u: Tensor, y: Tensor, t: Tensor) -> Tensor:
        sides = (y.mean(dim=(1, 2, 3)) - middle).detach().sign()
        return u + DIMENSION * 0.1 * sides * (t < 1e-9)

    found = checks(Wrong(density, tilt), density)
    rise = [check for check in found if check.name == RISE]
    assert all(check.word is not Word.inconsistent for check in rise)
    assert told(found) == {IMAGE}
    (image,) = [check for check in found if check.name == IMAGE]
    assert image.size == pytest.approx(0.1 / math.log(2), abs=4 * image.error)


def test_the_heat_equations_residual_is_zero_in_the_mean_too(density: GaussianMixture) -> None:
    """And of a left-over c(t) = κt it is 2κt/d, which the mean over probes finds."""
    generator = torch.Generator().manual_seed(0)
    clean = density.sample(200, generator)
    center, spectrum = density.moments()
    prior = StationaryGaussian(center, spectrum).double()
    signs = torch.stack([random_signs(SHAPE, generator) for _ in range(200)]).double()
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    for level in LEVELS:
        t = torch.full((200,), level, dtype=torch.float64)
        noisy, probe = corrupt(clean, noise, t), prior.synthesize(signs)
        for kappa in (0.0, 30.0):
            model = Wrong(density, lambda u, _, t, kappa=kappa: u + kappa * t)
            found = mean(heat_residual(*laplacian(model, noisy, t, probe, time=True), t))
            assert abs(found.value - 2 * kappa * level / DIMENSION) < 4 * found.stderr + 1e-7


def test_second_moments_are_those_of_the_errors() -> None:
    """Of slopes and gradients that err on their own: the mean is minus their error's share."""
    generator = torch.Generator().manual_seed(0)
    n, d = 20_000, 64
    x = 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    t = 0.2
    y = x + math.sqrt(t) * z
    v = 0.3**2 + t
    square = z.square().mean(dim=1)
    gradient = y / v  # of the Gaussian N(0, v)
    slope = 0.5 * t * (1 / v - y.square().mean(dim=1) / v**2)  # t ∂_tU/d

    def moments(gradient: Tensor, slope: Tensor) -> tuple[Estimate, Estimate]:
        space = (math.sqrt(t) * gradient - z).square().mean(dim=1)
        found = space_moments(space, square, t * gradient.square().mean(dim=1))
        return mean(found), mean(time_moments(slope, square))

    for found in moments(gradient, slope):
        assert abs(found.value) < 4 * found.stderr
    # A gradient too long by a tenth: E t‖∇U‖² (1.21 − 1.1)/d; a slope with an error e: E e².
    wrong = 0.02 * torch.randn(n, generator=generator, dtype=torch.float64)
    longer, off = moments(1.1 * gradient, slope + wrong)
    assert abs(longer.value - 0.11 * t / v) < 4 * longer.stderr
    assert longer.value > 10 * longer.stderr
    assert abs(off.value - 0.02**2) < 4 * off.stderr
    assert off.value > 10 * off.stderr


def in_bits(nats: Tensor) -> Estimate:
    return mean(bits(nats, DIMENSION))


def test_levels_between_the_strata_are_unbiased_too() -> None:
    """Of a Gaussian all is known: levels that are no edges of strata."""
    generator = torch.Generator().manual_seed(0)
    images, width, sigma = 4000, math.log(1e8) / 7, 0.1
    variances = stratified_variances(
        torch.rand(images, 7, generator=generator, dtype=torch.float64), 1e-6, 1e2
    )
    levels = [3e-4, 2e-2, 0.7]
    entropy = torch.tensor([0.5 * DIMENSION * math.log(sigma**2 + t) for t in levels], dtype=torch.float64)
    found = energy_rises(
        entropy.expand(images, 3), levels, variances, sigma**2 / (sigma**2 + variances), width, DIMENSION
    )
    assert found.shape == (images, 2)
    for gap in (in_bits(values) for values in found.unbind(1)):
        assert abs(gap.value) < 4 * gap.stderr
        assert gap.stderr < 0.05


def test_the_entropy_of_noisy_images_lies_between_the_noises_and_their_gaussians(
    density: GaussianMixture,
) -> None:
    """Log Z is taken from their Gaussian's at t_max: it is off by no more than what is between."""
    center, spectrum = density.moments()
    prior = StationaryGaussian(center, spectrum).double()
    generator = torch.Generator().manual_seed(0)
    for t in (1e-3, 1e-1, 1e1):
        clean = density.sample(20_000, generator)
        noisy = corrupt(
            clean, torch.randn(clean.shape, generator=generator, dtype=clean.dtype), torch.full((20_000,), t)
        )
        entropy = mean(density(noisy, torch.full((20_000,), t, dtype=clean.dtype)))
        low, high = noise_entropy(DIMENSION, t), float(prior.entropy(t))
        assert high - low == pytest.approx(float(0.5 * torch.log1p(prior.eigenvalues.double() / t).sum()))
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
    gap = in_bits(
        rise_from_nothing(
            torch.zeros_like(rise), rise, level, variances, space, width, DIMENSION, 1e-8, jumps=False
        )
    )
    assert abs(gap.value) < 4 * gap.stderr + 1e-3
    assert gap.stderr < 0.01


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
    gap = in_bits(
        rise_from_nothing(
            torch.zeros_like(rise), rise, level, variances, space, width, DIMENSION, t_min, jumps=False
        )
    )
    # 1 − d_eff/d = t/(σ² + t) is not quite ∝ t in the first stratum: 15 % of what lies below.
    assert abs(gap.value) < 4 * gap.stderr + 0.15 * 0.5 * math.log(1.05) / math.log(2)
    assert gap.stderr < 5e-3


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
    gap = in_bits(rise_from_nothing(torch.zeros_like(energy), energy, level, *measured, jumps=True))
    assert abs(gap.value) < 4 * gap.stderr
    assert gap.stderr < 3e-3
    # As if it were smooth, half of what lies below is missed.
    smooth = in_bits(rise_from_nothing(torch.zeros_like(energy), energy, level, *measured, jumps=False))
    assert smooth.value > gap.value + 8e-3
