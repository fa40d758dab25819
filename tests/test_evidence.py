"""What measurements say: posteriors and evidence on densities where both are known."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import dualscore
from dualscore.densities import GaussianMixture
from dualscore.energy import Denoiser
from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.sampling import evidence
from known_gaussian import Known, Posterior, known_model, smooth

SIDE, LAST = 4, 1e-4
SEEDS, DRAWS, BINS = 20, 19, 5


def masked(images: Tensor) -> Tensor:
    """Eleven of the sixteen pixels."""
    return images.flatten(2)[:, 0, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15]]


def blurred(images: Tensor, width: float = 1.0) -> Tensor:
    """By a Gaussian that is cut off after a pixel."""
    line = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0]).square() / width**2)
    kernel = torch.outer(line, line) / line.sum().square()
    return torch.nn.functional.conv2d(images, kernel[None, None], padding=1)


def smaller(images: Tensor) -> Tensor:
    """Half the size."""
    return torch.nn.functional.avg_pool2d(images, 2)


def as_it_is(images: Tensor) -> Tensor:
    return images


OPERATORS = [as_it_is, masked, blurred, smaller]


def measured(
    of: StationaryGaussian, forward: Callable[[Tensor], Tensor], v: float, seed: int
) -> tuple[Tensor, Tensor]:
    """An image of a Gaussian with noise of variance LAST, and a measurement of it."""
    generator = torch.Generator().manual_seed(seed)
    image = of.sample(1, generator)
    image = image + LAST**0.5 * torch.randn(image.shape, generator=generator)
    y = forward(image)[0]
    return image, y + v**0.5 * torch.randn(y.shape, generator=generator)


@pytest.fixture
def gaussian() -> ImageModel:
    """Its chains are led by another Gaussian, flatter and darker, so that the weights have work to do."""
    return known_model(Known(smooth(SIDE)), smooth(SIDE, 0.4, 0.1))


@pytest.fixture
def mixture() -> ImageModel:
    """Two kinds of images, dark and smooth or bright and rough, and the Gaussian between for the start."""
    parts = [smooth(SIDE, 0.3, 0.01), smooth(SIDE, 0.7, 0.03)]
    return known_model(GaussianMixture([0.4, 0.6], parts, (1, SIDE, SIDE)), smooth(SIDE, 0.54, 0.1))


@pytest.mark.parametrize("forward", OPERATORS, ids=lambda forward: forward.__name__)
@pytest.mark.parametrize("v", [1e-2, 1e-3])
def test_evidence_of_a_gaussian(gaussian: ImageModel, forward: Callable[[Tensor], Tensor], v: float) -> None:
    _, y = measured(smooth(SIDE), forward, v, seed=3)
    found = evidence(gaussian, y, forward, v, chains=256, steps=60, seed=1)
    exact = Posterior(smooth(SIDE), LAST, forward, y, v)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=4 * found.stderr)
    assert found.stderr < 0.1
    assert found.effective_groups > 7


def test_of_noise_alone_the_evidence_is_the_energy(mixture: ImageModel) -> None:
    """−ln p(y) = U(y, s + v), with no sampler at all."""
    _, y = measured(smooth(SIDE, 0.7, 0.03), as_it_is, 1e-2, seed=5)
    found = evidence(mixture, y, as_it_is, 1e-2, chains=256, steps=100)
    exact = -float(mixture.energy(y[None], LAST + 1e-2))
    assert found.log_evidence == pytest.approx(exact, abs=4 * found.stderr)
    assert found.stderr < 0.1


def test_its_error_is_right_and_its_mean(mixture: ImageModel) -> None:
    """Over seeds, of few chains and levels, so that chains are chosen again: p(y) itself is without bias."""
    _, y = measured(smooth(SIDE, 0.7, 0.03), masked, 1e-2, seed=3)
    parts = both(masked, y, 1e-2)
    exact = math.log(sum(w * math.exp(part.log_evidence) for w, part in zip((0.4, 0.6), parts, strict=True)))
    runs = [evidence(mixture, y, masked, 1e-2, chains=32, steps=14, seed=seed) for seed in range(40)]
    shares = torch.tensor([math.exp(run.log_evidence - exact) for run in runs])
    assert float(shares.mean()) == pytest.approx(1.0, abs=3.0 * float(shares.std()) / 40**0.5)
    assert float(shares.std()) < 0.5
    told = sum(run.stderr for run in runs) / len(runs)
    assert told == pytest.approx(float(shares.std()), rel=0.4)


def test_few_levels_leave_alike_what_is_told(mixture: ImageModel) -> None:
    """Chains are chosen again, and led apart in the end: no two samples are the same."""
    _, y = measured(smooth(SIDE, 0.7, 0.03), masked, 1e-3, seed=3)
    found = evidence(mixture, y, masked, 1e-3, chains=32, steps=6)
    assert found.effective_groups < 7.5
    assert len(found.images.flatten(1).unique(dim=0)) == 32


@pytest.mark.parametrize("name", ["an offset", "twice", "a number"])
def test_measurements_of_any_kind(gaussian: ImageModel, name: str) -> None:
    """With a constant; more numbers than pixels; a single number without a dimension."""
    _, y = measured(smooth(SIDE), as_it_is, 1e-2, seed=3)
    if name == "an offset":
        found = evidence(gaussian, smaller(y[None])[0] + 3.0, lambda x: smaller(x) + 3.0, 1e-2, steps=60)
        exact = Posterior(smooth(SIDE), LAST, smaller, smaller(y[None])[0], 1e-2).log_evidence
    elif name == "twice":
        found = evidence(
            gaussian, torch.cat([y, y + 0.1]), lambda x: torch.cat([x, x], dim=1), 1e-2, steps=60
        )
        twice = Posterior(
            smooth(SIDE), LAST, lambda x: torch.cat([x, x], dim=1), torch.cat([y, y + 0.1]), 1e-2
        )
        exact = twice.log_evidence
    else:
        found = evidence(gaussian, torch.tensor(0.4), lambda x: x.mean(dim=(1, 2, 3)), 1e-2, steps=60)
        single = Posterior(
            smooth(SIDE), LAST, lambda x: x.mean(dim=(1, 2, 3))[:, None], torch.tensor([0.4]), 1e-2
        )
        exact = single.log_evidence
    assert found.log_evidence == pytest.approx(exact, abs=4 * found.stderr)
    assert found.stderr < 0.1


def test_of_colour() -> None:
    """Three channels that go together."""
    spectrum = torch.tensor([[1.0, 0.8, 0.7], [0.8, 1.0, 0.8], [0.7, 0.8, 1.0]])[:, :, None, None]
    gaussian = StationaryGaussian(torch.tensor([0.4, 0.5, 0.6]), spectrum * smooth(3).eigenvalues[None])
    wider = StationaryGaussian(torch.tensor([0.5, 0.5, 0.5]), 2.0 * spectrum * smooth(3).eigenvalues[None])

    def gray(images: Tensor) -> Tensor:
        return images.mean(dim=1)

    _, y = measured(gaussian, gray, 1e-2, seed=3)
    found = evidence(known_model(Known(gaussian), wider), y, gray, 1e-2, chains=256, steps=60)
    exact = Posterior(gaussian, LAST, gray, y, 1e-2).log_evidence
    assert found.log_evidence == pytest.approx(exact, abs=4 * found.stderr)
    assert found.images.shape == (256, 3, 3, 3)


def test_log_z_is_counted(gaussian: ImageModel) -> None:
    _, y = measured(smooth(SIDE), smaller, 1e-2, seed=3)
    before = evidence(gaussian, y, smaller, 1e-2, chains=32, steps=10)
    gaussian.log_normalizer = 2.5
    after = evidence(gaussian, y, smaller, 1e-2, chains=32, steps=10)
    assert after.log_evidence == pytest.approx(before.log_evidence - 2.5)


def both(forward: Callable[[Tensor], Tensor], y: Tensor, v: float) -> list[Posterior]:
    """The mixture's parts after a measurement."""
    return [
        Posterior(smooth(SIDE, 0.3, 0.01), LAST, forward, y, v),
        Posterior(smooth(SIDE, 0.7, 0.03), LAST, forward, y, v),
    ]


def mean(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def contrast(images: Tensor) -> Tensor:
    return images.flatten(1).var(dim=1)


def corner(images: Tensor) -> Tensor:
    """A pixel that the mask hides."""
    return images[:, 0, 0, 2]


def one_pixel(images: Tensor) -> Tensor:
    """The mean of the upper half, which does not tell dark from bright for sure."""
    return images[:, :, :2].mean(dim=(1, 2, 3), keepdim=True)[:, 0, 0]


def test_posterior_of_a_mixture(mixture: ImageModel) -> None:
    """Both kinds have their share of the samples, and their means and variances."""
    y, v = torch.tensor([0.47]), 0.03
    first, second = both(one_pixel, y, v)
    odds = torch.tensor([math.log(0.4) + first.log_evidence, math.log(0.6) + second.log_evidence])
    dark, bright = odds.softmax(0).tolist()
    assert 0.2 < dark < 0.8
    found = evidence(mixture, y, one_pixel, v, chains=2048, steps=60)
    exact = math.log(0.4 * math.exp(first.log_evidence) + 0.6 * math.exp(second.log_evidence))
    assert found.log_evidence == pytest.approx(exact, abs=min(0.1, 4 * found.stderr))
    samples = found.images.flatten(1).double()
    mean = dark * first.mean + bright * second.mean
    squares = [part.covariance.diagonal() + part.mean.square() for part in (first, second)]
    variance = dark * squares[0] + bright * squares[1] - mean.square()
    error = 4.5 * (variance / 1024).sqrt()  # chosen again, the chains are worth half of them and more
    assert bool(((samples.mean(dim=0) - mean).abs() < error).all())
    assert samples.var(dim=0) / variance == pytest.approx(torch.ones(16).double(), rel=0.15)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_ranks_are_uniform(name: str, request: pytest.FixtureRequest) -> None:
    """Simulation-based calibration, Talts et al. 2018: images rank anywhere among samples."""
    model: ImageModel = request.getfixturevalue(name)
    dark, bright, v = smooth(SIDE, 0.3, 0.01), smooth(SIDE, 0.7, 0.03), 3e-3
    ranks = []
    for seed, forward in product(range(SEEDS), (masked, smaller)):
        generator = torch.Generator().manual_seed(1000 + seed)
        kind = dark if torch.rand(1, generator=generator) < 0.4 else bright
        image, y = measured(smooth(SIDE) if name == "gaussian" else kind, forward, v, seed=2000 + seed)
        found = evidence(model, y, forward, v, chains=80, steps=50, seed=seed)
        kept = found.images[torch.randperm(80, generator=generator)[:DRAWS]]
        ranks += [int((measure(kept) < measure(image)).sum()) for measure in (mean, contrast, corner)]
    counts = torch.bincount(torch.tensor(ranks) * BINS // (DRAWS + 1), minlength=BINS).double()
    expected = len(ranks) / BINS
    assert float((counts - expected).square().sum() / expected) < 13.3  # chi-squared of 4 degrees, 1 %


@pytest.mark.parametrize("seed", range(3))
def test_the_more_probable_is_chosen(gaussian: ImageModel, mixture: ImageModel, seed: int) -> None:
    """Of two noise variances, two blurs and two models, with the odds that are known."""

    def odds(
        one: tuple[ImageModel, Callable[[Tensor], Tensor], float],
        other: tuple[ImageModel, Callable[[Tensor], Tensor], float],
        y: Tensor,
        exact: float,
    ) -> None:
        first, second = (
            evidence(m, y, forward, v, chains=128, steps=80, seed=seed) for m, forward, v in (one, other)
        )
        error = math.hypot(first.stderr, second.stderr)
        found = first.log_evidence - second.log_evidence
        assert found == pytest.approx(exact, abs=4 * error)
        assert (found > 0) == (exact > 0)
        assert error < 0.3

    def known(forward: Callable[[Tensor], Tensor], v: float) -> float:
        return Posterior(smooth(SIDE), LAST, forward, y, v).log_evidence

    _, y = measured(smooth(SIDE), masked, 1e-2, seed)
    odds((gaussian, masked, 1e-2), (gaussian, masked, 1e-1), y, known(masked, 1e-2) - known(masked, 1e-1))
    _, y = measured(smooth(SIDE), blurred, 1e-3, seed)
    narrow = lambda images: blurred(images, 0.4)  # noqa: E731
    odds((gaussian, blurred, 1e-3), (gaussian, narrow, 1e-3), y, known(blurred, 1e-3) - known(narrow, 1e-3))
    dark, bright = both(blurred, y, 1e-3)
    exact = torch.tensor([math.log(0.4) + dark.log_evidence, math.log(0.6) + bright.log_evidence]).logsumexp(
        0
    )
    odds((gaussian, blurred, 1e-3), (mixture, blurred, 1e-3), y, known(blurred, 1e-3) - float(exact))


def test_what_it_cannot_do_is_refused(gaussian: ImageModel) -> None:
    y = torch.zeros(1, SIDE, SIDE)
    with pytest.raises(
        SamplingError, match=r"of y's shape \(1, 4, 4\); to images \(1, 1, 4, 4\) it gave \(1, 11\)"
    ):
        evidence(gaussian, y, masked, 0.1)
    with pytest.raises(SamplingError, match="A is not linear"):
        evidence(gaussian, y, torch.square, 0.1)
    with pytest.raises(SamplingError, match="20 chains: a multiple of 8"):
        evidence(gaussian, y, as_it_is, 0.1, chains=20)
    for v in (0.0, -1.0, math.nan):
        with pytest.raises(SamplingError, match="a measurement needs noise"):
            evidence(gaussian, y, as_it_is, v)
    large = known_model(Known(smooth(72)), smooth(72))
    with pytest.raises(SamplingError, match="images of 5,184 numbers, and 4,096 are the most"):
        evidence(large, torch.zeros(1, 72, 72), as_it_is, 0.1)
    with pytest.raises(SamplingError, match="A and y must be real"):
        evidence(gaussian, torch.fft.fft2(y), torch.fft.fft2, 0.1)
    with pytest.raises(SamplingError, match="not finite"):
        evidence(gaussian, torch.full_like(y, math.nan), as_it_is, 0.1)
    with pytest.raises(SamplingError, match="needs noise, of one variance"):
        evidence(gaussian, y, as_it_is, torch.tensor([0.1, 0.2]))  # type: ignore[arg-type]
    with pytest.raises(SamplingError, match=r"model\.at\(height, width\) is of smaller ones"):
        evidence(dualscore.load("photographs_gray"), torch.zeros(1, 128, 128), as_it_is, 0.1)
    for log_z in (None, math.nan):
        gaussian.log_normalizer = log_z
        with pytest.raises(SamplingError, match="log Z is not known"):
            evidence(gaussian, y, as_it_is, 0.1)
    gaussian.log_normalizer, gaussian.normalized_shape = 0.0, (1, 9, 9)
    with pytest.raises(SamplingError, match=r"log Z is of images \(1, 9, 9\)"):
        evidence(gaussian, y, as_it_is, 0.1)
    gaussian.score_model = Denoiser(torch.nn.Identity())
    with pytest.raises(SamplingError, match="is a denoiser"):
        evidence(gaussian, y, as_it_is, 0.1)
