"""Sampling against densities that are known: energies, moments, shares of the modes, conditionals."""

import math
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor

from dualscore.densities import GaussianMixture, gaussian_textures, mode_mixture, scale_mixture
from dualscore.energy import Denoiser, EnergyModel
from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.noise import corrupt
from dualscore.sampling import (
    T_MIN,
    Annealed,
    Known,
    Method,
    Noisy,
    anneal,
    effective_samples,
    flow,
    inpaint,
    levels,
    mala,
    posterior,
    resample,
    sample,
    start_from,
)
from test_gaussian import full_covariance
from test_ode import ScoreOnly

LEVEL = 0.01
"""Of every test of a hypothesis here: a right sampler fails it in 1 of 100 seeds."""
SHAPE = (1, 8, 8)
CHAINS = 2000

DENSITIES = {"scale_mixture": scale_mixture, "gaussian_textures": gaussian_textures}
T = {"scale_mixture": 1e-2, "gaussian_textures": 1e-4}
"""Where sampling ends: far below every variance of the density, in pixel²."""
T_MAX = {"scale_mixture": 1e3, "gaussian_textures": 10.0}
# The largest stable steps are about 4 smallest variances: these are accepted about 60 times in 100.
STEP_SIZE = {"scale_mixture": 0.6, "gaussian_textures": 2e-3}


def known(name: str) -> GaussianMixture:
    return DENSITIES[name](SHAPE).double()


def moments_prior(density: GaussianMixture) -> StationaryGaussian:
    return StationaryGaussian(*density.moments()).double()


def draw(density: GaussianMixture, t: float, count: int, generator: torch.Generator) -> Tensor:
    """Exact samples of p(y | t)."""
    clean = density.sample(count, generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return corrupt(clean, noise, torch.full((count,), t, dtype=clean.dtype))


class Evidence(NamedTuple):
    energies: float
    """p-value of the two-sample Kolmogorov–Smirnov test of the energies."""
    shares: float
    """p-value of the components' shares; 1 where there is one component."""
    worst_moment: float
    """Largest deviation of a coefficient's second moment, in standard errors."""


def judge(density: GaussianMixture, y: Tensor, t: float, seed: int) -> Evidence:
    """Compare samples with as many exact ones, and with the exact second moments."""
    generator = torch.Generator().manual_seed(1000 + seed)
    truth, at = draw(density, t, 10 * len(y), generator), torch.full((len(y),), t, dtype=y.dtype)
    if not bool(y.isfinite().all()):
        return Evidence(0.0, 0.0, math.inf)
    energies = stats.ks_2samp(density(y, at), density(truth, at.repeat(10))).pvalue
    counts = torch.bincount(density.component(y, at), minlength=len(density.components))
    expected = len(y) * density.log_weights.exp()
    shares = 1.0 if len(counts) == 1 else stats.chisquare(counts, expected).pvalue
    prior = moments_prior(density)
    squares = prior.analyze(y - prior.mean[:, None, None]).square()
    exact = draw(density, t, 20 * len(y), generator)
    spread = prior.analyze(exact - prior.mean[:, None, None]).square().std(dim=0) / math.sqrt(len(y))
    worst = ((squares.mean(dim=0) - prior.eigenvalues - t) / spread).abs().max()
    return Evidence(float(energies), float(shares), float(worst))


def moved(name: str, seed: int, adjust: bool) -> tuple[Evidence, float]:
    """Exact samples after Langevin steps, and the acceptance."""
    density, generator = known(name), torch.Generator().manual_seed(seed)
    start = draw(density, T[name], CHAINS, generator)
    chain = mala(
        density, start, T[name], steps=100, step_size=STEP_SIZE[name], generator=generator, adjust=adjust
    )
    return judge(density, chain.images, T[name], seed), float(chain.acceptance.mean())


def annealed(name: str, seed: int, adjust: bool, count: int = CHAINS, number: int = 100) -> Annealed:
    """Samples from noise, one step at each level; unadjusted ones with the same steps."""
    density, generator = known(name), torch.Generator().manual_seed(seed)
    schedule = levels(T_MAX[name], number, T[name])
    start, energy = start_from(moments_prior(density), schedule[0], count, generator)
    return anneal(density, start, schedule, generator=generator, adjust=adjust, start_energy=energy)


def chosen(found: Annealed, seed: int) -> Tensor:
    assert found.log_weight is not None
    return found.images[resample(found.log_weight, torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("name", DENSITIES)
def test_metropolis_steps_leave_a_density_as_it_is_and_langevin_steps_alone_do_not(name: str) -> None:
    right, acceptance = moved(name, seed=0, adjust=True)
    assert 0.4 < acceptance < 0.9
    assert right.energies > LEVEL
    assert right.shares > LEVEL
    assert right.worst_moment < 4
    wrong, _ = moved(name, seed=0, adjust=False)
    assert wrong.energies < 1e-6


@pytest.mark.parametrize("name", DENSITIES)
def test_annealed_metropolis_sampling_finds_a_density_from_noise(name: str) -> None:
    found = annealed(name, seed=0, adjust=True)
    assert found.log_weight is not None
    worth = effective_samples(found.log_weight)
    assert worth > 0.5 * CHAINS
    # The mean weight is the ratio of the normalizers, which are 1.
    stderr = math.sqrt(1 / worth - 1 / CHAINS)
    assert abs(float(found.log_weight.logsumexp(0)) - math.log(CHAINS)) < 4 * stderr
    right = judge(known(name), chosen(found, 0), T[name], 0)
    assert right.energies > LEVEL
    assert right.shares > LEVEL
    assert right.worst_moment < 4 * math.sqrt(CHAINS / worth)
    assert judge(known(name), annealed(name, 0, adjust=False).images, T[name], 0).energies < LEVEL


def test_weights_correct_a_start_and_a_schedule_that_are_wrong() -> None:
    """Two modes, 8 : 2, started between them at a level where they are nearly apart."""
    density, generator = mode_mixture((1, 1, 2)).double(), torch.Generator().manual_seed(0)
    between = StationaryGaussian(torch.zeros(1), torch.full((1, 1, 1, 2), 4.0)).double()
    schedule = levels(1.0, 20, 1e-3)
    start, energy = start_from(between, schedule[0], 4000, generator)
    found = anneal(density, start, schedule, generator=generator, start_energy=energy)
    assert found.log_weight is not None

    def share(images: Tensor) -> float:
        return float((images.mean(dim=(1, 2, 3)) < 0).double().mean())

    worth = effective_samples(found.log_weight)
    stderr = math.sqrt(0.16 / worth)
    assert abs(share(found.images) - 0.8) > 6 * stderr
    assert abs(share(chosen(found, 0)) - 0.8) < 4 * stderr


class Shifted(EnergyModel):
    """An energy with another normalization at each level: −log p + c ln t."""

    def __init__(self, energy: EnergyModel, slope: float) -> None:
        super().__init__()
        self.energy, self.slope = energy, slope

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        energies: Tensor = self.energy(noisy, noise_variance)
        return energies + self.slope * noise_variance.log()


def test_the_mean_weight_measures_the_normalizer() -> None:
    density, generator = known("scale_mixture"), torch.Generator().manual_seed(0)
    schedule = levels(1e3, 100, 1e-2)
    start, energy = start_from(moments_prior(density), schedule[0], 1000, generator)
    found = anneal(Shifted(density, 0.5), start, schedule, generator=generator, start_energy=energy)
    assert found.log_weight is not None
    log_z = float(found.log_weight.logsumexp(0)) - math.log(1000)
    stderr = 1 / math.sqrt(effective_samples(found.log_weight))
    assert log_z == pytest.approx(-0.5 * math.log(1e-2), abs=4 * stderr)


def test_systematic_resampling_takes_each_as_often_as_it_weighs() -> None:
    weights = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.0], dtype=torch.float64)
    picked = resample(weights.log(), torch.Generator().manual_seed(0))
    counts = torch.bincount(picked, minlength=5)
    assert len(picked) == 5
    for count, wanted in zip(counts.tolist(), (5 * weights).tolist(), strict=True):
        assert math.floor(wanted) <= count <= math.ceil(wanted)
    assert effective_samples(weights.log()) == pytest.approx(1 / 0.42)
    assert effective_samples(torch.full((7,), -900.0, dtype=torch.float64)) == pytest.approx(7)


def texture() -> tuple[GaussianMixture, StationaryGaussian]:
    density = known("gaussian_textures")
    (gaussian,) = density.components
    assert isinstance(gaussian, StationaryGaussian)
    return density, gaussian


@pytest.mark.parametrize("adjust", [True, False])
def test_samples_given_a_noisy_image_are_of_the_posterior(adjust: bool) -> None:
    """In the eigenbasis the posterior of a Gaussian is known, coefficient by coefficient."""
    (density, gaussian), generator = texture(), torch.Generator().manual_seed(0)
    t, count = 0.02, 1000
    noisy = draw(density, t, 1, generator).repeat(count, 1, 1, 1)
    found = anneal(
        density,
        noisy,
        levels(t, 60, 1e-5),
        generator=generator,
        adjust=adjust,
        step_size=None if adjust else 0.02,
        condition=Noisy(noisy, t),
    )
    images = chosen(found, 0) if adjust else found.images
    s, values = 1e-5, gaussian.eigenvalues
    mean = density.denoise(noisy[:1], torch.full((1,), t, dtype=torch.float64))
    deviation = gaussian.analyze(images - mean) / (values * t / (values + t) + s).sqrt()
    squares = deviation.square().sum(dim=(1, 2, 3))
    assert float(deviation.mean(dim=0).abs().max()) < 4.5 / math.sqrt(count) * 1.3
    assert stats.kstest(squares, stats.chi2(64).cdf).pvalue > LEVEL
    assert float((images - noisy).square().mean()) > 0.5 * t  # and far from where they began


def test_known_pixels_are_held_at_their_noisy_values() -> None:
    x, z = torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), 2.0)
    known_pixels = torch.tensor([[True, False], [False, False]])
    held = Known(x, known_pixels, z).hold(torch.zeros_like(x), torch.tensor([0.25]))
    assert held.flatten().tolist() == [1.25, 0.0, 0.0, 0.0]


def test_inpainted_pixels_are_of_the_conditional() -> None:
    """Against the conditional mean and covariance of a Gaussian vector, and the known pixels' density."""
    (density, gaussian), generator = texture(), torch.Generator().manual_seed(0)
    count, s = 1000, T_MIN
    clean = density.sample(1, generator)
    known_pixels = torch.ones(8, 8, dtype=torch.bool)
    known_pixels[2:6, 3:6] = False
    given = clean.where(known_pixels, math.nan).repeat(count, 1, 1, 1)
    found = inpaint(image_model(), given, known_pixels, steps=120, batch_size=count)
    assert torch.equal(found.images[:, :, known_pixels], given[:, :, known_pixels])

    spectrum = torch.diag_embed(gaussian.eigenvalues.permute(1, 2, 0)).permute(2, 3, 0, 1)
    covariance = full_covariance(spectrum.double()) + s * torch.eye(64, dtype=torch.float64)
    missing = (~known_pixels).flatten()
    across, inside = covariance[missing][:, ~missing], covariance[~missing][:, ~missing]
    values, rest = found.images.flatten(1)[:, missing], clean.flatten()[~missing] - 0.5
    mean = 0.5 + across @ torch.linalg.solve(inside, rest)
    root = torch.linalg.cholesky(
        covariance[missing][:, missing] - across @ torch.linalg.solve(inside, across.mT)
    )
    whitened = torch.linalg.solve_triangular(root, (values - mean).mT, upper=False).mT

    assert found.log_weight is not None
    worth, weights = effective_samples(found.log_weight), found.log_weight.softmax(0)
    assert worth > 0.5 * count
    assert float((weights @ whitened).abs().max()) < 4 / math.sqrt(worth)
    assert float((weights @ whitened.square() - 1).abs().max()) < 4 * math.sqrt(2 / worth)
    energies = whitened[resample(found.log_weight, generator)].square().sum(dim=1)
    assert stats.kstest(energies, stats.chi2(12).cdf).pvalue > LEVEL
    marginal = torch.distributions.MultivariateNormal(torch.zeros_like(rest), inside).log_prob(rest)
    log_mean = float(found.log_weight.logsumexp(0)) - math.log(count)
    assert log_mean == pytest.approx(float(marginal), abs=1.0)  # each sample has a little noise of its own


@pytest.mark.parametrize("denoiser", [False, True])
def test_the_flow_finds_a_density(denoiser: bool) -> None:
    density, generator = known("scale_mixture"), torch.Generator().manual_seed(0)
    model = ScoreOnly(density) if denoiser else density
    prior = moments_prior(density)
    y, evaluations = flow(model, prior, 1000, t_min=1e-2, t_max=1e3, tolerance=1e-3, generator=generator)
    found = judge(density, y, 1e-2, 0)
    assert found.energies > LEVEL
    assert found.shares > LEVEL
    assert found.worst_moment < 4
    assert evaluations < 400


def image_model(denoiser: bool = False) -> ImageModel:
    density, gaussian = texture()
    score: EnergyModel | ScoreOnly = ScoreOnly(density) if denoiser else density
    return ImageModel(score, image_shape=SHAPE, log_normalizer=0.0, t_max=10.0, prior=gaussian).eval()


@pytest.mark.parametrize("method", Method)
def test_the_same_seed_gives_the_same_samples(method: Method) -> None:
    model = image_model()
    one = sample(model, 5, method=method, steps=20, seed=3)
    assert torch.equal(one.images, sample(model, 5, method=method, steps=20, seed=3).images)
    assert not torch.equal(one.images, sample(model, 5, method=method, steps=20, seed=4).images)
    assert one.images.shape == (5, *SHAPE)
    assert (one.log_weight is not None) == (method is Method.metropolis)
    assert len(one.acceptance) == (0 if method is Method.flow else 19)
    parts = sample(model, 5, method=method, steps=20, seed=3, batch_size=2)
    assert parts.images.shape == (5, *SHAPE)
    assert float(parts.images.std()) == pytest.approx(0.1, rel=0.5)


def test_a_denoiser_has_no_energy_to_accept_by() -> None:
    model = image_model(denoiser=True)
    assert sample(model, 2, method=Method.langevin, steps=10).images.shape == (2, *SHAPE)
    with pytest.raises(SamplingError, match="is a denoiser"):
        sample(model, 2, steps=10)
    noisy = torch.rand(2, *SHAPE, dtype=torch.float64)
    with pytest.raises(SamplingError, match="is a denoiser"):
        posterior(model, noisy, 0.1, steps=10)
    generator = torch.Generator().manual_seed(0)
    for call in (
        lambda: mala(model.score_model, noisy, 0.1, steps=1, step_size=0.1, generator=generator),
        lambda: anneal(model.score_model, noisy, [1.0, 0.5], generator=generator),
    ):
        with pytest.raises(ValueError, match="adjust=False"):
            call()


def test_what_cannot_be_sampled_is_refused() -> None:
    model, x = image_model(), torch.rand(1, *SHAPE, dtype=torch.float64)
    everything = torch.ones(8, 8, dtype=torch.bool)
    with pytest.raises(SamplingError, match="2 or more"):
        sample(model, 1, steps=1)
    with pytest.raises(SamplingError, match="falling"):
        posterior(model, x, 1e-9)
    with pytest.raises(SamplingError, match="hides some"):
        inpaint(model, x, everything)
    with pytest.raises(SamplingError, match="without conditions"):
        inpaint(model, x, ~everything, method=Method.flow)
    generator = torch.Generator().manual_seed(0)
    for schedule in ([], [0.1, 0.2], [0.1, 0.0]):
        with pytest.raises(ValueError, match="must fall"):
            anneal(model.score_model, x, schedule, generator=generator)
    model.prior = None
    with pytest.raises(SamplingError, match="only checkpoints of"):
        sample(model, 1)


def test_samples_that_are_not_finite_are_an_error() -> None:
    model = image_model()

    class Broken(torch.nn.Module):
        def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:  # noqa: ARG002
            return noisy * math.nan

    model.score_model = Denoiser(Broken())
    with pytest.raises(SamplingError, match="2 of 2 samples are not finite"):
        sample(model, 2, method=Method.langevin, steps=5)


def test_no_model_is_asked_below_the_noise_it_was_trained_at() -> None:
    model = image_model()
    asked: list[float] = []
    hook = lambda _, given: asked.append(float(given[1].detach().min()))  # noqa: E731
    model.score_model.register_forward_pre_hook(hook)
    model.t_min = 1e-2
    sample(model, 2, method=Method.flow)
    assert 5e-3 < min(asked) <= 1e-2  # the solver's last step goes a little beyond the end
    asked.clear()
    for method in (Method.metropolis, Method.langevin):
        sample(model, 2, method=method, steps=5)
    posterior(model, torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)), 0.5, steps=5)
    known_pixels = torch.zeros(SHAPE[1:], dtype=torch.bool)
    known_pixels[:2] = True
    inpaint(model, torch.full((2, *SHAPE), 0.5), known_pixels, steps=5)
    assert min(asked) == pytest.approx(1e-2)
    model.t_min = 0.0
    sample(model, 2, steps=5)
    assert min(asked) == pytest.approx(T_MIN)
