"""Known densities are models without a parameter, and can be used as any model."""

import pytest
import torch

from dualscore.densities import texture_mixture
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.sampling.sample_images import Method, inpaint, posterior, sample

SHAPE = (1, 4, 4)


def model() -> ImageModel:
    density = texture_mixture(SHAPE)
    assert not list(density.parameters())
    mean, spectrum = density.moments()
    prior = StationaryGaussian(mean, spectrum)
    return ImageModel(density, image_shape=SHAPE, log_normalizer=0.0, t_max=10.0, prior=prior).eval()


@pytest.mark.parametrize("method", Method)
def test_it_is_sampled_from(method: Method) -> None:
    found = sample(model(), 3, method=method, steps=10)
    assert found.images.shape == (3, *SHAPE)
    assert found.images.isfinite().all()


@pytest.mark.parametrize("method", [Method.metropolis, Method.langevin])
def test_it_denoises_and_inpaints(method: Method) -> None:
    clean = model().score_model.sample(2, torch.Generator().manual_seed(0))  # type: ignore[operator]
    noisy = posterior(model(), clean, 0.01, method=method, steps=10)
    assert noisy.images.isfinite().all()
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[:2] = True
    found = inpaint(model(), clean, known, method=method, steps=10)
    assert torch.equal(found.images[:, :, :2], clean[:, :, :2])
    assert found.images.isfinite().all()


def test_its_double_precision_is_that_of_its_buffers() -> None:
    double = model().double()
    assert double.like.dtype == torch.float64
    assert sample(double, 2, steps=5).images.dtype == torch.float64


def test_it_is_normalized_as_a_trained_one_is() -> None:
    one = model()
    images = one.score_model.sample(64, torch.Generator().manual_seed(0)).clamp(0, 1)  # type: ignore[operator]
    assert abs(one.normalize(images)) < 1.0  # nats; it was normalized
