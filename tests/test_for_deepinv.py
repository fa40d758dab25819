"""Our models in deepinv: denoiser, explicit prior, and Metropolis steps whose posteriors are known."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import dualscore
from dualscore.errors import ModelError
from dualscore.model import ImageModel
from known_gaussian import Known, Posterior, known_model, smooth

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed: pip install deepinv")
from deepinv.sampling.sampling_iterators.sampling_iterator import SamplingIterator  # noqa: E402

from dualscore.adapters.for_deepinv import EnergyDenoiser, EnergyPrior, MetropolisIterator  # noqa: E402

SIDE, SIGMA, NOISE = 4, 0.05, 0.1


@pytest.fixture
def model() -> ImageModel:
    return known_model(Known(smooth(SIDE)), smooth(SIDE), t_min=1e-6)


def test_the_denoiser_takes_a_deviation_for_all_or_each(model: ImageModel) -> None:
    denoiser, noisy = EnergyDenoiser(model), torch.rand(3, 1, SIDE, SIDE)
    assert torch.allclose(denoiser(noisy, 0.2), model.denoise(noisy, 0.04))
    each = torch.tensor([0.1, 0.2, 0.3])
    assert torch.allclose(denoiser(noisy, each), model.denoise(noisy, each.square()))
    assert torch.allclose(denoiser(noisy, each.view(3, 1, 1, 1)), denoiser(noisy, each))
    with pytest.raises(ModelError, match="one an image: 3, not 2"):
        denoiser(noisy, each[:2])


def test_four_orientations_are_turned_back() -> None:
    model, noisy = dualscore.load("photographs_gray"), torch.rand(1, 1, 5, 8)
    flips = [(), (2, 3), (3,), (2,)]
    expected = torch.stack([model.denoise(noisy.flip(some), 0.01).flip(some) for some in flips]).mean(dim=0)
    assert torch.allclose(EnergyDenoiser(model, turned=True)(noisy, 0.1), expected, atol=1e-6)
    assert not torch.allclose(EnergyDenoiser(model)(noisy, 0.1), expected, atol=1e-3)


def test_the_prior_is_explicit_and_its_gradient_its_own(model: ImageModel) -> None:
    prior, images = EnergyPrior(model), torch.rand(2, 1, SIDE, SIDE, requires_grad=True)
    assert prior.explicit_prior
    (expected,) = torch.autograd.grad(prior.fn(images, 0.1).sum(), images)
    assert torch.allclose(prior.grad(images, 0.1), expected, atol=1e-3)


CHAINS = 400


class Sampled(NamedTuple):
    """Chains of a posterior that is known."""

    chi_squared: float  # of the means, of 16 degrees
    spread: Tensor  # variances over the posterior's, (16,)
    history: list[dict[str, Tensor]]


def sampled(model: ImageModel, iterator: SamplingIterator, iterations: int) -> Sampled:
    torch.manual_seed(0)
    mask = (torch.rand(1, 1, SIDE, SIDE) < 0.6).float()
    physics = deepinv.physics.Inpainting((1, SIDE, SIDE), mask=mask[0])
    y = mask * torch.rand(1, 1, SIDE, SIDE)
    sampler = deepinv.sampling.BaseSampling(
        iterator, deepinv.optim.data_fidelity.L2(sigma=NOISE), EnergyPrior(model),
        max_iter=iterations, burnin_ratio=0.5, thinning=1, history_size=True,
    )  # fmt: skip
    many = y.expand(CHAINS, -1, -1, -1)
    sampler.sample(many, physics, x_init=torch.full_like(many, 0.5), seed=1)
    history = list(sampler.history)
    exact = Posterior(smooth(SIDE), SIGMA**2, lambda images: mask * images, y, NOISE**2)
    variance = exact.covariance.diagonal()
    found = history[-1]["x"].flatten(1).double()
    error = (found.mean(dim=0) - exact.mean) / (variance / CHAINS).sqrt()
    return Sampled(float(error.square().sum()), found.var(dim=0) / variance, history)


@pytest.mark.parametrize("step_size", [3e-4, 3e-3])
def test_posterior_samples_have_the_moments_of_the_posterior(model: ImageModel, step_size: float) -> None:
    """Whatever the step size, which biases Langevin steps that are not corrected: see the next test."""
    found = sampled(model, MetropolisIterator({"step_size": step_size, "sigma": SIGMA, "adapt": 200}), 600)
    assert found.chi_squared < 40.0  # of 16 degrees: above it once in 1,300
    assert float((found.spread - 1.0).abs().max()) < 5 * math.sqrt(2.0 / CHAINS)
    moved = torch.stack([state["accepted"] for state in found.history[-300:]]).mean()
    assert 0.45 < float(moved) < 0.7


def test_deepinvs_own_samplers_run_on_the_prior_and_are_biased_by_their_steps(model: ImageModel) -> None:
    own = {"sigma": SIGMA, "alpha": 1.0}
    skrock = own | {"inner_iter": 10, "eta": 0.05}
    for iterator, params, iterations, spreads in (
        (deepinv.sampling.ULAIterator, own, 600, {1e-3: (0.9, 1.1), 3e-3: (1.2, 1.4)}),
        (deepinv.sampling.SKRockIterator, skrock, 60, {1e-3: (0.9, 1.1), 3e-2: (0.45, 0.7)}),
    ):
        for step_size, (low, high) in spreads.items():
            found = sampled(model, iterator(params | {"step_size": step_size}), iterations)
            assert low < float(found.spread.mean()) < high


def test_an_implicit_prior_is_refused(model: ImageModel) -> None:
    iterator = MetropolisIterator({"step_size": 1e-3, "sigma": SIGMA})
    prior = deepinv.optim.prior.ScorePrior(EnergyDenoiser(model))
    images = torch.rand(1, 1, SIDE, SIDE)
    physics = deepinv.physics.Denoising()
    with pytest.raises(ModelError, match="an implicit prior has no density"):
        iterator.initialize_latent_variables(images, images, physics, deepinv.optim.data_fidelity.L2(), prior)
    with pytest.raises(ModelError, match="needs sigma"):
        MetropolisIterator({"step_size": 1.0})
