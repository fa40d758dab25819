"""Our models in azula: its samplers and its guidance by measurements find what is known of a Gaussian."""

import pytest
import torch
from torch import Tensor

import dualscore
from dualscore.errors import ModelError
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from known_gaussian import Known, Posterior, known_model, smooth

pytest.importorskip("azula", reason="azula is not installed: pip install azula")
from azula.guidance.mmps import MMPSDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.noise import Schedule, VESchedule, VPSchedule
from azula.sample import DDIMSampler, DDPMSampler

from dualscore.adapters.for_azula import EnergyDenoiser

SIDE, NOISE = 4, 0.1


@pytest.fixture
def model() -> ImageModel:
    return known_model(Known(smooth(SIDE)), smooth(SIDE), t_min=1e-6)


@pytest.mark.parametrize(
    "schedule", [VPSchedule(), VESchedule()], ids=lambda schedule: type(schedule).__name__
)
@pytest.mark.parametrize("pixels", [(0.0, 1.0), (-1.0, 1.0)])
def test_its_mean_is_the_denoised_image(
    model: ImageModel, schedule: Schedule, pixels: tuple[float, float]
) -> None:
    black, white = pixels
    clean, noise, t = (
        torch.rand(3, 1, SIDE, SIDE),
        torch.randn(3, 1, SIDE, SIDE),
        torch.tensor([0.2, 0.5, 0.7]),
    )
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in schedule(t))
    x_t = alpha * (black + (white - black) * clean) + sigma * noise
    found = EnergyDenoiser(model, schedule, pixels)(x_t, t).mean
    deviation = sigma / alpha / (white - black)
    expected = model.denoise(clean + deviation * noise, deviation.flatten().square())
    assert torch.allclose((found - black) / (white - black), expected, atol=1e-4)
    one = EnergyDenoiser(model, schedule, pixels)(x_t[:1], t[0]).mean
    assert torch.allclose(one, found[:1], atol=1e-5)


def test_samples_have_the_moments_of_the_density(model: ImageModel) -> None:
    torch.manual_seed(0)
    denoiser = EnergyDenoiser(model, VESchedule(0.01, 10.0), (0.0, 1.0))
    sampler = DDIMSampler(denoiser, steps=128, silent=True)
    found = sampler(0.5 + sampler.init((2000, 1, SIDE, SIDE))).detach()
    moments(found, torch.full((SIDE * SIDE,), 0.5), variances(smooth(SIDE)))


def test_guided_samples_have_the_moments_of_the_posterior(model: ImageModel) -> None:
    """By moment matching (Rozet et al. 2024), which is exact of Gaussians: its gradient is our ∇²U."""
    torch.manual_seed(0)
    seen = torch.tensor([0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15])

    def masked(images: Tensor) -> Tensor:
        return images.flatten(1)[:, seen]

    y = masked(smooth(SIDE).sample(1, torch.Generator().manual_seed(1)))
    exact = Posterior(smooth(SIDE), 0.0, masked, y, NOISE**2)
    denoiser = EnergyDenoiser(model, VESchedule(0.01, 10.0), (0.0, 1.0))
    covariance = IsotropicCovariance(torch.tensor(NOISE**2))
    guided = MMPSDenoiser(denoiser, y.expand(1000, -1), masked, covariance, iterations=12)
    sampler = DDPMSampler(guided, steps=200, silent=True)
    found = sampler(sampler.init((1000, 1, SIDE, SIDE))).detach()
    moments(found, exact.mean, exact.covariance.diagonal())


def variances(gaussian: StationaryGaussian) -> Tensor:
    """Of the pixels of a Gaussian."""
    eye = gaussian.synthesize(torch.eye(SIDE * SIDE).view(-1, 1, SIDE, SIDE)).flatten(1)
    return (eye.square() * gaussian.eigenvalues.flatten()[:, None]).sum(dim=0)


def moments(images: Tensor, mean: Tensor, variance: Tensor) -> None:
    found = images.flatten(1).double()
    assert bool(((found.mean(dim=0) - mean).abs() < 4.5 * (variance / len(found)).sqrt() + 0.003).all())
    assert found.var(dim=0) / variance == pytest.approx(torch.ones(SIDE * SIDE).double(), rel=0.2)


def test_images_of_another_size_are_refused(model: ImageModel) -> None:
    with pytest.raises(ModelError, match=r"must have shape \(B, 1, 4, 4\), got \(1, 1, 5, 4\)"):
        EnergyDenoiser(model, VPSchedule())(torch.zeros(1, 1, 5, 4), torch.tensor(0.5))


def test_a_schedule_may_begin_above_what_the_model_knows() -> None:
    """There it is noise on the training images' Gaussian; samples end as pixels."""
    torch.manual_seed(0)
    denoiser = EnergyDenoiser(dualscore.load("photographs_gray"), VPSchedule())
    sampler = DDPMSampler(denoiser, steps=40, silent=True)
    found = sampler(sampler.init((4, 1, 8, 8))).detach()
    assert float(found.abs().max()) < 1.5


def test_the_model_stays_as_it_was() -> None:
    """Its weights are trained on; other types are answered in; colour is refused in words."""
    model = dualscore.load("photographs_gray").requires_grad_(True)
    denoiser = EnergyDenoiser(model, VPSchedule())
    x_t = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    mean = denoiser(x_t, torch.tensor(0.5)).mean
    assert mean.dtype == torch.float64
    assert torch.autograd.grad(mean.sum(), x_t)[0].abs().sum() > 0
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(ModelError, match=r"must have shape \(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        denoiser(torch.rand(2, 3, 8, 8), torch.tensor(0.5))
