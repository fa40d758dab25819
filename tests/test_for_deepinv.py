"""Our models in deepinv: denoiser, explicit prior, and Metropolis steps whose posteriors are known."""

import math

import pytest
import torch

import dualscore
from dualscore.errors import ModelError
from dualscore.model import ImageModel
from known_gaussian import Known, Posterior, known_model, smooth

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed: pip install deepinv")
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


@pytest.mark.parametrize("step_size", [3e-4, 3e-3])
def test_posterior_samples_have_the_moments_of_the_posterior(model: ImageModel, step_size: float) -> None:
    """Whatever the step size, which would bias Langevin steps that are not corrected."""
    torch.manual_seed(0)
    mask = (torch.rand(1, 1, SIDE, SIDE) < 0.6).float()
    physics = deepinv.physics.Inpainting((1, SIDE, SIDE), mask=mask[0])
    y = mask * torch.rand(1, 1, SIDE, SIDE)
    chains = 400
    iterator = MetropolisIterator({"step_size": step_size, "sigma": SIGMA, "adapt": 200})
    sampler = deepinv.sampling.BaseSampling(
        iterator, deepinv.optim.data_fidelity.L2(sigma=NOISE), EnergyPrior(model),
        max_iter=600, burnin_ratio=0.5, thinning=1, history_size=True,
    )  # fmt: skip
    many = y.expand(chains, -1, -1, -1)
    sampler.sample(many, physics, x_init=torch.full_like(many, 0.5), seed=1)
    last = sampler.history[-1]
    exact = Posterior(smooth(SIDE), SIGMA**2, lambda images: mask * images, y, NOISE**2)
    variance = exact.covariance.diagonal()
    found = last["x"].flatten(1).double()
    error = (found.mean(dim=0) - exact.mean) / (variance / chains).sqrt()
    assert float(error.square().sum()) < 40.0  # chi-squared of 16 degrees: above it once in 1,300
    spread = found.var(dim=0) / variance
    assert float((spread - 1.0).abs().max()) < 5 * math.sqrt(2.0 / chains)
    moved = torch.stack([state["accepted"] for state in list(sampler.history)[-300:]]).mean()
    assert 0.45 < float(moved) < 0.7


def test_an_implicit_prior_is_refused(model: ImageModel) -> None:
    iterator = MetropolisIterator({"step_size": 1e-3, "sigma": SIGMA})
    prior = deepinv.optim.prior.ScorePrior(EnergyDenoiser(model))
    images = torch.rand(1, 1, SIDE, SIDE)
    physics = deepinv.physics.Denoising()
    with pytest.raises(ModelError, match="an implicit prior has no density"):
        iterator.initialize_latent_variables(images, images, physics, deepinv.optim.data_fidelity.L2(), prior)
    with pytest.raises(ModelError, match="needs sigma"):
        MetropolisIterator({"step_size": 1.0})
