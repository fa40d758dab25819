"""One energy for every size: rows at a time, exact gradients, the Gaussian at any size, crops."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dualscore.networks.causal_energy as causal
from dualscore.errors import ConfigError
from dualscore.gaussian import StationaryGaussian
from dualscore.images import crops
from dualscore.model import ImageModel
from dualscore.networks import CausalEnergy, SeveralOrders
from dualscore.networks.causal_energy import GREEN_FIRST
from dualscore.settings.experiment import load_experiment
from test_causal_energy import shaken

SIZES = [(1, 1), (1, 37), (40, 1), (3, 5), (23, 17)]


def noisy(channels: int, height: int, width: int, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    levels = torch.randint(0, 256, (images, channels, height, width), generator=generator)
    return levels.double() / 255.0 + 0.01 * torch.randn(levels.shape, generator=generator).double()


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_at_a_time_are_the_whole(
    channels: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, y = shaken(channels, levels=256), noisy(channels, *size)
    t = torch.tensor([1e-6, 1e-2], dtype=torch.float64)
    whole = model.energy_map(y, t)
    monkeypatch.setattr(causal, "ON_A_CPU", 1)
    # A level's probability is a difference of two shares, in which tails lose digits.
    torch.testing.assert_close(model.energy_map(y, t), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("levels", "digits"), [(0, 1e-9), (256, 1e-6)])  # where tails lose digits
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_by_rows_is_that_of_the_whole(
    channels: int, size: tuple[int, int], levels: int, digits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, y = shaken(channels, levels=levels), noisy(channels, *size)
    t = torch.tensor([1e-6, 1e-2], dtype=torch.float64)
    with torch.no_grad():
        whole = model.gradients(y, t, time=False)
        monkeypatch.setattr(causal, "WITH_A_GRAPH", 0)
        monkeypatch.setattr(causal, "ON_A_CPU", 2 * size[1])  # a row of both images
        rows = model.gradients(y, t, time=False)
    assert rows.image.grad_fn is None
    torch.testing.assert_close(rows.image, whole.image, rtol=digits, atol=10 * digits)
    torch.testing.assert_close(rows.energy, whole.energy, rtol=min(digits, 1e-6), atol=1e-6)
    assert not whole.image.isclose(torch.zeros(()).double()).all()


def test_a_graph_of_the_whole_is_kept_only_where_somebody_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else a photograph takes 4 kB a number wherever gradients are not switched off."""
    model, y, t = shaken(1).requires_grad_(False), noisy(1, 9, 7), torch.full((2,), 1e-2).double()
    monkeypatch.setattr(causal, "WITH_A_GRAPH", 0)
    asked = []
    by_rows = model._gradient_by_rows
    monkeypatch.setattr(model, "_gradient_by_rows", lambda *given: asked.append(1) or by_rows(*given))
    found = model.gradients(y, t, time=False).image
    assert asked == [1]
    learned = model.gradients(y.requires_grad_(), t, time=False).image
    assert asked == [1]
    torch.testing.assert_close(learned.detach(), found, rtol=1e-9, atol=1e-9)
    assert torch.autograd.grad(learned.sum(), y)[0].isfinite().all()
    y.requires_grad_(False)
    model.requires_grad_(True)
    assert model.gradients(y, t, time=False).image.grad_fn is not None
    assert asked == [1]


@torch.no_grad()
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.3])
def test_every_channel_has_a_density_given_those_before_it(place: int, t: float) -> None:
    model = shaken(3)
    places = torch.linspace(-12.0, 13.0, 50_001, dtype=torch.float64)
    y = noisy(3, 2, 2, 1).expand(len(places), -1, -1, -1).clone()
    y[:, GREEN_FIRST[place], 1, 0] = places
    parts = [
        model._nats(some, torch.full((len(some),), t, dtype=torch.float64))[:, 2, place]
        for some in y.split(10_000)
    ]
    mass = torch.exp(-torch.cat(parts)).sum() * (places[1] - places[0])
    assert float(mass) == pytest.approx(1.0, abs=1e-5)


def image_model(channels: int = 1, levels: int = 256) -> ImageModel:
    spectrum = 0.1 * torch.eye(channels)[:, :, None, None].expand(-1, -1, 8, 8).double()
    prior = StationaryGaussian(torch.full((channels,), 0.5), spectrum).double()
    model = shaken(channels, levels=levels)
    return ImageModel(model, image_shape=(channels, 8, 8), t_min=1e-7, t_max=100.0, prior=prior).eval()


def test_code_lengths_are_of_probabilities_that_sum_to_one() -> None:
    levels = torch.arange(256.0).double().view(-1, 1, 1, 1) / 255.0
    total = torch.exp2(-image_model().bits_per_dim(levels)).sum()
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_a_model_without_sizes_takes_any_and_another_channel_not() -> None:
    model = image_model()
    for size in SIZES:
        clean = noisy(1, *size).mul(255).round().clamp(0, 255) / 255.0
        energy = model.energy(clean)
        assert model.bits_per_dim(clean) == pytest.approx(
            math.log2(255) + energy / (math.prod(size) * math.log(2.0))
        )
        assert model.energy_map(clean).shape == (2, *size)
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\)"):
        model.bits_per_dim(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\)"):
        model.bits_per_dim(torch.rand(8, 8))


def test_a_model_of_one_size_stays_of_one() -> None:
    class Tied(CausalEnergy):
        pass

    tied = Tied(torch.tensor([0.5]), torch.tensor(0.1), hidden=4, layers=2)
    tied.gaussian = StationaryGaussian(torch.tensor([0.5]), torch.ones(1, 1, 8, 8))
    model = ImageModel(tied, image_shape=(1, 8, 8))
    assert not model.any_size
    with pytest.raises(ValueError, match=r"shape \(B, 1, 8, 8\)"):
        model.bits_per_dim(torch.rand(1, 1, 9, 8))


def test_the_bound_is_of_any_size_and_known_by_its_seed() -> None:
    model = image_model(3)
    clean = noisy(3, 9, 14).mul(255).round().clamp(0, 255) / 255.0
    found = model.bound(clean, strata=4)
    assert found.shape == (2,)
    assert found.dtype == torch.float64
    assert bool((found > 0).all())
    torch.testing.assert_close(model.bound(clean, strata=4), found)
    assert not torch.equal(model.bound(clean, strata=4, seed=1), found)
    with pytest.raises(ValueError, match="grey levels"):
        model.bound(0.5 * clean, strata=4)


def test_several_orders_know_the_levels_of_each() -> None:
    assert SeveralOrders(shaken(levels=256), 2).levels == 256
    assert SeveralOrders(shaken(), 2).levels == 0


def power_law(size: int) -> Tensor:
    """A spectrum 1/(f² + f0²), sampled at πk/size: (1, 1, size, size)."""
    f = math.pi * torch.arange(size, dtype=torch.float64) / size
    return (1.0 / (f[:, None] ** 2 + f**2 + 0.01))[None, None]


def test_a_gaussian_at_another_size_has_the_spectrum_of_its_frequencies() -> None:
    known = StationaryGaussian(torch.tensor([0.4]), power_law(64))
    assert known.at(64, 64) is known
    for height, width in [(200, 31), (100, 64)]:
        found = known.at(height, width).eigenvalues[0].double()
        f, g = (math.pi * torch.arange(n, dtype=torch.float64) / n for n in (height, width))
        wanted = 1.0 / (f[:, None] ** 2 + g**2 + 0.01)
        middle = found[4:-4, 4:-4] / wanted[4:-4, 4:-4]  # where a share of the axis is small
        assert float((middle - 1).abs().max()) < 0.15
    white = StationaryGaussian(torch.zeros(3), 0.3 * torch.eye(3)[:, :, None, None].expand(-1, -1, 16, 16))
    for size in SIZES:
        torch.testing.assert_close(white.at(*size).eigenvalues, torch.full((3, *size), 0.3))


def test_of_small_images_the_mean_is_not_that_of_large_ones() -> None:
    """The variance of a pixel is the spectrum's mean, whatever the size, as far as frequencies are there."""
    known = StationaryGaussian(torch.tensor([0.4]), power_law(128))
    pixel = float(known.eigenvalues.mean())
    assert float(known.at(16, 16).eigenvalues.mean()) == pytest.approx(pixel, rel=0.1)
    assert float(known.at(300, 200).eigenvalues.mean()) == pytest.approx(pixel, rel=0.15)


def test_crops_are_pieces_of_their_images_at_places_that_the_key_decides() -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(9.0), indexing="ij")
    images = torch.stack([torch.stack([100 * i + rows, 100 * i + columns]) for i in range(200)])
    found = crops(images, 4, torch.Generator().manual_seed(0))
    assert found.shape == (200, 2, 4, 4)
    corners = found[:, :, 0, 0] - 100 * torch.arange(200.0)[:, None]
    for i, (top, left) in enumerate(corners.long().tolist()):
        assert torch.equal(found[i], images[i, :, top : top + 4, left : left + 4])
    assert set(corners[:, 0].tolist()) == set(range(9))
    assert set(corners[:, 1].tolist()) == set(range(6))
    assert torch.equal(crops(images, 4, torch.Generator().manual_seed(0)), found)
    assert torch.equal(crops(images[:1, :, :9], 9, torch.Generator()), images[:1, :, :9])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.crops=[16, 16]", "different sides"),
        ("data.crops=[16, 256]", "must not exceed data.size=128"),
        ("data.crops=[16, 48]", "must be a multiple of data.streams"),
        ("trainer.accumulate=2", "must be 1 with data.crops"),
        ("network.kind=unet", "network.kind=causal"),
    ],
)
def test_crops_that_cannot_be_are_refused(override: str, reason: str) -> None:
    extra = ["objective.likelihood_weight=0", "objective.likelihood_steps=0"] if "unet" in override else []
    with pytest.raises(ConfigError, match=reason):
        load_experiment("photographs_gray", [override, *extra], folder=Path("experiments"))
