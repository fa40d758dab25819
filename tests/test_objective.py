"""The dual objective where everything is known in closed form."""

import math

import pytest
import torch

from dualscore.energy import Denoiser, Energy, EnergyModel, Gradients, ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.networks import LinearEmbedding, UNet
from dualscore.noise import corrupt, log_uniform
from dualscore.objective import another_level, dual_score_matching
from test_gaussian import random_spectrum


class ExactGaussian(ScoreModel):
    """The true energy of Gaussian data, whose derivatives are known."""

    def __init__(
        self, gaussian: StationaryGaussian, time_error: float = 0.0, space_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.gaussian, self.time_error, self.space_factor = gaussian, time_error, space_factor

    def gradients(self, noisy: torch.Tensor, noise_variance: torch.Tensor, *, time: bool = True) -> Gradients:
        g = self.gaussian
        coefficients = g.analyze(noisy - g.mean[:, None, None])
        total = g.eigenvalues + noise_variance[:, None, None, None]
        image = self.space_factor * g.synthesize(coefficients / total)
        derivative = 0.5 * (1 / total - coefficients.square() / total.square()).sum(dim=(1, 2, 3))
        derivative = derivative + self.time_error * noisy[0].numel() / noise_variance
        return Gradients(image, derivative if time else None)


def problem(
    t: float, count: int = 4000
) -> tuple[StationaryGaussian, torch.Tensor, torch.Tensor, torch.Tensor]:
    gaussian = StationaryGaussian(torch.tensor([0.5]), random_spectrum(1, 4, 4)).double()
    x = gaussian.sample(count, torch.Generator().manual_seed(0))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return gaussian, x, z, torch.full((count,), t, dtype=torch.float64)


@pytest.mark.parametrize("t", [1e-3, 0.05, 3.0])
def test_at_the_truth_both_terms_have_their_known_minimum(t: float) -> None:
    gaussian, x, z, times = problem(t)
    losses = dual_score_matching(ExactGaussian(gaussian), x, z, times)
    assert losses.time is not None
    share = gaussian.eigenvalues / (gaussian.eigenvalues + t)
    d = share.numel()
    # Posterior variance over t, and Var(‖z‖²/2d) minus what y tells of it.
    space, time = float(share.mean()), float((1 - (1 - share).square()).sum() / (2 * d**2))
    for loss, expected in ((losses.space, space), (losses.time, time)):
        assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / math.sqrt(len(loss))
    assert float(losses.time.mean()) <= 1.2 / (2 * d)


@pytest.mark.parametrize("t", [1e-3, 0.05, 3.0])
def test_wrong_gradients_cost_what_they_miss(t: float) -> None:
    gaussian, x, z, times = problem(t)
    best = dual_score_matching(ExactGaussian(gaussian), x, z, times)
    late = dual_score_matching(ExactGaussian(gaussian, time_error=0.2), x, z, times)
    long = dual_score_matching(ExactGaussian(gaussian, space_factor=1.5), x, z, times)
    assert best.time is not None
    assert late.time is not None
    excess = late.time - best.time
    assert abs(float(excess.mean()) - 0.04) < 4 * float(excess.std()) / math.sqrt(len(excess))
    assert torch.equal(late.space, best.space)
    excess = long.space - best.space
    share = t / (gaussian.eigenvalues + t)
    expected = 0.25 * float(share.mean())
    assert abs(float(excess.mean()) - expected) < 4 * float(excess.std()) / math.sqrt(len(excess))


def test_the_losses_are_the_formulas() -> None:
    """(t/d)‖∇U − (y−x)/t‖² and (t/d)²(∂_tU − d/2t + ‖y−x‖²/2t²)², written out."""
    torch.manual_seed(0)
    energy = Energy(UNet(1, LinearEmbedding(), width=4, scales=1, layers=2)).double()
    x, z = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    y, d = corrupt(x, z, t), 16
    gradients = energy.gradients(y, t)
    assert gradients.noise_variance is not None
    difference = (y - x).flatten(1)
    space = t / d * (gradients.image.flatten(1) - difference / t[:, None]).square().sum(1)
    target = d / (2 * t) - difference.square().sum(1) / (2 * t**2)
    time = (t / d) ** 2 * (gradients.noise_variance - target).square()
    losses = dual_score_matching(energy, x, z, t, time_weight=3.0)
    assert losses.time is not None
    assert torch.allclose(losses.space, space, rtol=1e-9)
    assert torch.allclose(losses.time, time, rtol=1e-9)
    assert torch.allclose(losses.total, space + 3 * time, rtol=1e-9)


def test_weight_zero_is_single_score_matching() -> None:
    torch.manual_seed(0)
    energy = Energy(UNet(1, LinearEmbedding(), width=4, scales=1, layers=2))
    x, z = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    losses = dual_score_matching(energy, x, z, torch.tensor([0.01, 1.0, 30.0]), time_weight=0.0)
    assert losses.time is None
    assert torch.equal(losses.total, losses.space)


def test_a_noise_level_is_told_best_by_the_true_energy() -> None:
    """Of energies U + k ln t the true one, k = 0, has the least loss, where t is log-uniform."""
    gaussian, x, z, _ = problem(0.05)
    u = torch.rand(2, len(x), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = log_uniform(u[0], 1e-3, 1.0)
    elsewhere = another_level(t, u[1], (1e-3, 1.0))

    class Off(EnergyModel):
        def __init__(self, k: float) -> None:
            super().__init__()
            self.k = k

        def forward(self, noisy: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
            return gaussian(noisy, noise_variance).energy + self.k * noise_variance.log()

    found = []
    for k in (-1.0, 0.0, 1.0):
        losses = dual_score_matching(Off(k), x, z, t, level_weight=0.5, elsewhere=elsewhere)
        assert losses.level is not None
        assert losses.time is not None
        torch.testing.assert_close(losses.total, losses.space + losses.time + 0.5 * losses.level)
        found.append(losses.level)
    for wrong in (found[0], found[2]):
        worse = wrong - found[1]
        assert float(worse.mean()) > 4 * float(worse.std()) / math.sqrt(len(worse))
    y = corrupt(x, z, t)
    ratio = torch.exp(Off(0.0)(y, elsewhere) - Off(0.0)(y, t))  # p(y | t) / p(y | t′)
    torch.testing.assert_close(found[1], -torch.log(ratio / (1 + ratio)))


def test_the_other_level_lies_on_both_sides_at_its_distance_and_in_the_range() -> None:
    t, u = torch.full((1000,), 0.05), torch.linspace(0, 0.999, 1000)
    apart = (another_level(t, u, (1e-9, 1e3)) / t).log().abs()
    assert float(apart.min()) == pytest.approx(0.1, abs=0.01)
    assert float(apart.max()) == pytest.approx(2.0, abs=0.01)
    assert float((another_level(t, u, (1e-9, 1e3)) > t).float().mean()) == pytest.approx(0.5, abs=0.01)
    near = another_level(t, u, (0.04, 0.06))
    assert float(near.max()) < 0.06
    assert float((near == t).float().mean()) > 0.8


def test_a_denoiser_is_trained_on_its_mean_squared_error() -> None:
    torch.manual_seed(0)
    model = Denoiser(UNet(1, LinearEmbedding(), width=4, scales=1, layers=2)).double()
    x, z = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    losses = dual_score_matching(model, x, z, t)
    error = (model.denoise(corrupt(x, z, t), t) - x).square().mean(dim=(1, 2, 3))
    assert torch.allclose(losses.space, error / t, rtol=1e-9)
    assert losses.time is None


def test_the_loss_reaches_the_weights_through_both_gradients() -> None:
    torch.manual_seed(0)
    energy = Energy(UNet(1, LinearEmbedding(), width=4, scales=1, layers=2)).double()
    weight = energy.network.get_parameter("output.weight")
    x, z = torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 5.0], dtype=torch.float64)
    other = torch.tensor([0.2, 3.0], dtype=torch.float64)
    for weighted, level in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.1)):

        def total(weighted: float = weighted, level: float = level) -> torch.Tensor:
            return dual_score_matching(energy, x, z, t, weighted, level, elsewhere=other).total.sum()

        (gradient,) = torch.autograd.grad(total(), weight)
        direction = torch.randn_like(weight)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight.add_(step * direction)
                values.append(total())
                weight.sub_(step * direction)
        slope = float((values[0] - values[1]) / 2e-6)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("t", [0.0, -1.0, math.nan])
def test_impossible_noise_variances_are_refused(t: float) -> None:
    gaussian, x, z, _ = problem(1.0, count=2)
    with pytest.raises(ValueError, match="noise variances must be > 0"):
        dual_score_matching(ExactGaussian(gaussian), x, z, torch.tensor([1.0, t], dtype=torch.float64))


def test_shapes_that_disagree_are_refused() -> None:
    gaussian, x, z, t = problem(1.0, count=4)
    with pytest.raises(ValueError, match="shapes disagree"):
        dual_score_matching(ExactGaussian(gaussian), x, z[:3], t)
    with pytest.raises(ValueError, match="shapes disagree"):
        dual_score_matching(ExactGaussian(gaussian), x, z, t[:3])
