"""The ODE ends: at its end, at a limit, or with the error of the model that it asked."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dualscore.densities import GaussianMixture, texture_mixture
from dualscore.energy import EnergyModel, Gradients
from dualscore.errors import FlowError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import ode
from dualscore.likelihood.ode import ode_energy
from dualscore.measuring.quantities import ode_energies
from dualscore.measuring.subject import Images, Subject
from dualscore.model import ImageModel
from dualscore.noise import random_signs
from dualscore.sampling.sample_images import Method, sample

SHAPE = (1, 8, 8)
Wrong = Callable[[Tensor, Tensor, Tensor], Tensor]


def density() -> GaussianMixture:
    return texture_mixture(SHAPE).double()


def prior_of(density: GaussianMixture) -> StationaryGaussian:
    return StationaryGaussian(*density.moments()).double()


class Spoilt(EnergyModel):
    """A density whose gradient something was done to."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__()
        self.right, self.wrong = density(), wrong

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        return self.right(noisy, noise_variance)

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:
        found = self.right.gradients(noisy, noise_variance, time=time)
        return found._replace(image=self.wrong(found.image, noisy, noise_variance))


def bright(noisy: Tensor, noise_variance: Tensor) -> Tensor:
    """Which images are too bright, where there is little noise yet."""
    return ((noisy.mean(dim=(1, 2, 3)) > 2.0) & (noise_variance < 0.1))[:, None, None, None]


def bright_is_nan(gradient: Tensor, noisy: Tensor, noise_variance: Tensor) -> Tensor:
    """Not finite for a bright image."""
    return gradient * torch.where(bright(noisy, noise_variance), math.nan, 1.0)


def bright_has_no_limit(gradient: Tensor, noisy: Tensor, noise_variance: Tensor) -> Tensor:
    """So rough for a bright image that no step is small enough."""
    rough = torch.sin(1e9 * noisy) * 1e3 / noise_variance.sqrt()[:, None, None, None]
    return torch.where(bright(noisy, noise_variance), gradient + rough, gradient)


def bright_explodes(gradient: Tensor, noisy: Tensor, noise_variance: Tensor) -> Tensor:
    """Overflows on the way for a bright image."""
    return gradient + torch.where(bright(noisy, noise_variance), noisy, 0.0).exp() ** 40 - 1.0


@pytest.mark.parametrize("wrong", [bright_is_nan, bright_has_no_limit, bright_explodes])
def test_an_image_whose_flow_is_lost_is_named_and_the_others_have_their_figures(
    monkeypatch: pytest.MonkeyPatch, wrong: Wrong
) -> None:
    monkeypatch.setattr(ode, "MOST_EVALUATIONS", 300)
    model, right = Spoilt(wrong), density()
    clean = right.sample(3, torch.Generator().manual_seed(0))
    clean[1] += 5.0
    found = {
        name: ode_energies(
            Subject(m, prior_of(right), None, quantized=False, dequantize=False, t_range=(1e-6, 1e2), seed=0),
            Images(clean, [0, 1, 2]),
            1e-3,
        )["energy"]
        for name, m in (("spoilt", model), ("right", right))
    }
    assert found["spoilt"].isfinite().tolist() == [True, False, True]
    assert torch.allclose(found["spoilt"][[0, 2]], found["right"][[0, 2]], atol=64 * 5e-3)


def test_samples_by_a_flow_that_is_lost_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = prior_of(density())
    for wrong in (
        lambda g, *_: g * math.nan,
        lambda g, y, t: g + torch.sin(1e9 * y) / t[:, None, None, None],
    ):
        monkeypatch.setattr(ode, "MOST_EVALUATIONS", 300)
        model = ImageModel(Spoilt(wrong), image_shape=SHAPE, t_max=1e2, prior=prior)
        with pytest.raises(FlowError, match=r"cannot be followed: .*score is wrong somewhere") as error:
            sample(model, 2, method=Method.flow)
        assert "\n" not in str(error.value)


def refuses(*_: Tensor) -> Tensor:
    """What a network does that is given another size than it takes."""
    raise AssertionError("8 is not divisible by 16")


def test_an_assertion_of_the_model_is_not_the_solvers() -> None:
    right = density()
    prior, clean = prior_of(right), right.sample(2, torch.Generator().manual_seed(0))
    subject = Subject(
        Spoilt(refuses), prior, None, quantized=False, dequantize=False, t_range=(1e-6, 1e2), seed=0
    )
    with pytest.raises(AssertionError, match="not divisible"):
        ode_energies(subject, Images(clean, [0, 1]), 1e-3)
    with pytest.raises(AssertionError, match="not divisible"):
        sample(ImageModel(Spoilt(refuses), image_shape=SHAPE, t_max=1e2, prior=prior), 2, method=Method.flow)


def checks(_: torch.Generator) -> Tensor:
    """A pattern that the density finds absurd."""
    return (torch.arange(8)[:, None] + torch.arange(8)).fmod(2).double().expand(4, *SHAPE).clone()


@pytest.mark.parametrize(
    "images",
    [
        lambda g: density().sample(4, g),
        lambda g: torch.rand(4, *SHAPE, generator=g, dtype=torch.float64),
        checks,
    ],
    ids=["its own", "white noise", "absurd"],
)
def test_the_error_is_small_in_bits_a_dimension_however_large_the_energy(
    images: Callable[[torch.Generator], Tensor],
) -> None:
    right, generator = density(), torch.Generator().manual_seed(0)
    prior, x = prior_of(right), images(generator)
    signs = torch.stack([random_signs(SHAPE, generator) for _ in x]).double()
    close, usual = (
        ode_energy(
            right, x, prior, prior.synthesize(signs), t_min=1e-8, t_max=1e2, tolerance=tolerance
        ).energy
        for tolerance in (1e-7, 1e-3)
    )
    assert float((usual - close).abs().max()) / (64 * math.log(2)) < 4e-3
