"""Patches less their mean: the coordinates, the energy over them, and what tables of BSDS300 hold."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dualscore
from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian, WhiteGaussian, dct_matrix
from dualscore.likelihood.bound import decode_density, diffusion_energy, noise_in_strata, prior_divergence
from dualscore.networks import CausalEnergy, MeanFreeEnergy, SeveralOrders
from dualscore.networks.mean_free import mean_free_basis, mean_free_spectrum, table_nats, to_vectors
from dualscore.networks.orders import put_back, reordered
from dualscore.objective import denoising_loss
from workspace import TINY, Workspace


def energy(side: int, orders: int = 1, narrow: float | None = None, seed: int = 0) -> MeanFreeEnergy:
    """One whose weights say nothing in particular, in double precision; `narrow`: ln of all deviations."""
    generator = torch.Generator().manual_seed(seed)
    causal = CausalEnergy(
        torch.zeros(1), torch.tensor(0.05), hidden=8, layers=2, radius=max(1, side - 1), mean_free=True
    ).double()
    with torch.no_grad():
        for parameter in causal.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.15 * noise + (parameter if parameter.ndim == 1 else 0.0))
        if narrow is not None:
            causal.factors[0].mixture.bias[-6:] = narrow  # type: ignore[union-attr, index]
    return MeanFreeEnergy(SeveralOrders(causal, orders), side).double().eval()


def test_the_coordinates_are_orthonormal_and_their_cosines_are_the_patches() -> None:
    patches = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors, basis, image = to_vectors(patches), mean_free_basis(4), dct_matrix(4)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(15, dtype=torch.float64))
    centred = patches - patches.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close((vectors.flatten(1) @ basis).view_as(patches), centred)
    coefficients = (image @ patches @ image.mT).flatten(1)[:, 1:]
    torch.testing.assert_close(vectors.flatten(1) @ dct_matrix(15).mT, coefficients)
    spectrum = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    of_images = StationaryGaussian(torch.zeros(1), spectrum)
    of_vectors = StationaryGaussian(torch.zeros(1), mean_free_spectrum(spectrum))
    t = torch.full((5,), 0.3)
    mean = centred.float() * 0.0
    rest = of_images(mean, t).energy - 0.5 * torch.log(2 * math.pi * (spectrum[0, 0, 0, 0] + 0.3))
    gap = of_images(centred.float(), t).energy - of_images(mean, t).energy
    torch.testing.assert_close(of_vectors(vectors.float(), t).energy, (rest + gap).float())


@torch.no_grad()
@pytest.mark.parametrize(("orders", "t"), [(1, 0.05), (4, 0.05), (1, 2.0)])
def test_the_density_integrates_to_one(orders: int, t: float) -> None:
    """Over the three dimensions of 2×2 pixels."""
    model, reach = energy(2, orders, narrow=-0.5), 6.0 * math.sqrt(0.4 + t)
    places = torch.linspace(-reach, reach, 81, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"), dim=-1).view(-1, 1, 1, 3)
    parts = [torch.exp(-model(y, y.new_full((len(y),), t))).sum() for y in grid.split(50_000)]
    mass = float(torch.stack(parts).sum()) * float(places[1] - places[0]) ** 3
    assert mass == pytest.approx(1.0, abs=5e-3)


@torch.no_grad()
def test_where_noise_is_all_there_is_the_energy_is_that_of_noise() -> None:
    """The same in every direction of the subspace, though pixels come one after the other."""
    model, t = energy(4), 1e6
    causal = model.energy.energy  # type: ignore[union-attr]
    causal.factors[0].linear.weight.zero_()
    causal.factors[0].linear.bias.zero_()
    causal.factors[0].mixture.weight.zero_()
    causal.factors[0].mixture.bias.zero_()
    causal.factors[0].mixture.bias[-6:] = -30.0
    noisy = math.sqrt(t) * torch.randn(
        20, 1, 1, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    white = 0.5 * (noisy.square().sum(dim=(1, 2, 3)) / t + 15 * math.log(2 * math.pi * t))
    torch.testing.assert_close(model(noisy, noisy.new_full((20,), t)), white, rtol=0, atol=1e-4)


def test_the_nats_of_tables_are_those_of_the_first_pixels() -> None:
    """A Gaussian's, by the covariance of what tables are of: (levels + noise) / 256, less the last pixel."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(15, 15, generator=generator, dtype=torch.float64)
    covariance, basis = root @ root.mT + torch.eye(15), mean_free_basis(4).double()
    vectors = torch.distributions.MultivariateNormal(torch.zeros(15, dtype=torch.float64), covariance)
    map_to_table = basis.mT[:15] * (255.0 / 256.0)
    table = torch.distributions.MultivariateNormal(
        torch.zeros(15, dtype=torch.float64), map_to_table @ covariance @ map_to_table.mT
    )
    v = torch.randn(15, generator=generator, dtype=torch.float64)
    bits = 8.0 - float(vectors.log_prob(v)) / (15 * math.log(2.0))
    assert table_nats(bits, 4) == pytest.approx(float(table.log_prob(map_to_table @ v)), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["patches", "vectors"])
def test_the_mean_over_orders_denoises_in_every_direction_alike(kind: str) -> None:
    whole = energy(4, orders=8)
    model: EnergyModel = whole if kind == "vectors" else whole.energy
    averaged = model.averaged()
    assert averaged is not None
    y = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, t = y - y.mean(dim=(2, 3), keepdim=True), torch.tensor([1e-3, 0.1, 2.0], dtype=torch.float64)

    def denoised(patches: Tensor) -> Tensor:
        if kind == "patches":
            return averaged.denoise(patches, t)
        return whole.patches(averaged.denoise(to_vectors(patches), t))

    def least(x: Tensor) -> Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)  # of patches, only what the subspace holds

    expected = least(denoised(y))
    single = whole.energy.energy  # type: ignore[union-attr]
    by_hand = torch.stack([put_back(single.denoise(reordered(y, k), t), k) for k in range(8)]).mean(dim=0)  # type: ignore[union-attr]
    torch.testing.assert_close(expected, least(by_hand), rtol=1e-5, atol=1e-5)  # the basis is rounded
    for order in range(8):
        torch.testing.assert_close(
            least(denoised(reordered(y, order))), reordered(expected, order), rtol=1e-5, atol=1e-5
        )
    alone = energy(4, orders=1)
    assert alone.averaged() is None
    assert alone.energy.averaged() is None


def test_the_bound_of_a_known_density_is_its_energy() -> None:
    """Exact for a Gaussian but for its decoder's width, which one draw of the noise tells."""
    generator = torch.Generator().manual_seed(0)
    mean, spectrum = torch.zeros(1), torch.full((1, 1, 1, 63), 0.04)
    density = WhiteGaussian(mean, torch.tensor(0.04))
    images = 0.2 * torch.randn(512, 1, 1, 63, generator=generator)
    model = _Gaussian(density)
    t0, t1, strata = 1e-3, 1e4, 64
    drawn = noise_in_strata(images, t0, t1, strata, generator)
    space = torch.stack([denoising_loss(model, images, noise, t) for noise, t in drawn], dim=1).double()
    total = (
        decode_density(model, images, torch.randn(images.shape, generator=generator), t0)
        + diffusion_energy(space, 63, math.log(t1 / t0) / strata)
        + prior_divergence(images, StationaryGaussian(mean, spectrum), t1)
    )
    gap = total - density(images, torch.zeros(512)).energy
    error = float(gap.std()) / math.sqrt(512)
    assert -3.0 * error < float(gap.mean()) < 0.25 + 3.0 * error
    assert error < 0.4


class _Gaussian(EnergyModel):
    """A Gaussian's energy."""

    normalized = True

    def __init__(self, density: WhiteGaussian) -> None:
        super().__init__()
        self.density = density

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        return self.density(noisy, noise_variance).energy  # type: ignore[no-any-return]


@pytest.fixture
def settings(official_shards: Callable[[str], Path]) -> list[str]:
    """Of tiny runs on the patches of four photographs."""
    return [
        *TINY, f"data.path={official_shards('bsds300')}", "network.orders=2", "optim.warmup_steps=0",
        "optim.schedule=halving", "trainer.validate_every=2", "objective.likelihood_steps=2",
        "evaluate.estimators=[paper,bound]",
    ]  # fmt: skip


def test_a_run_on_patches_less_their_mean(workspace: Workspace, settings: list[str]) -> None:
    printed = workspace.run("train", "bsds300", *settings, "trainer.max_steps=4")
    folder = workspace.folder / "runs/bsds300"
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["image_shape"] == [1, 1, 63]
    assert list(report["bits_per_dim"]) == ["paper", "bound"]
    assert "certificate" not in report["bits_per_dim"]["bound"]  # a density's decoder has no largest value
    assert "as the tables of BSDS300 have it" in printed
    found = report["bits_per_dim"]["paper"]["value"]
    assert f"{table_nats(found, 8):.1f}" in printed
    # The full-covariance Gaussian is far from the tables' on two photographs, but is one of the same vectors.
    assert report["yardsticks"]["full_covariance"]["value"] < 8.0
    assert report["bits_per_dim"]["bound"]["parts"]["levels"]["value"] == 8.0
    assert "vectors" in workspace.fail("score", "runs/bsds300", str(folder))
    assert "dualscore score" not in printed
    workspace.run("export", "runs/bsds300", "--out", "exported")
    own, exported = (dualscore.load(workspace.folder / name) for name in ("runs/bsds300", "exported"))
    vectors = 0.1 * torch.randn(3, 1, 1, 63, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own.log_prob(vectors), exported.log_prob(vectors))
    assert own.log_normalizer == 0.0


def test_a_stopped_run_goes_on_to_the_same_bits(workspace: Workspace, settings: list[str]) -> None:
    for name, stops in (("whole", [4]), ("stopped", [2, 4])):
        for stop in stops:
            workspace.run(
                "train", "bsds300", *settings, f"trainer.max_steps={stop}", "--runs", f"runs/{name}"
            )
    places = [workspace.folder / "runs" / name / "bsds300" for name in ("whole", "stopped")]
    whole, stopped = (workspace.checkpoint(str(place))["state_dict"] for place in places)
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("data.quantized=true", "data.mean_free"), ("data.channels=3", "data.mean_free"),
        ("data.flip=true", "data.flip"), ("data.mean_free=false", "data.quantized"),
        ("network.orders=1", "evaluate.mirror"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(workspace: Workspace, settings: list[str], setting: str, key: str) -> None:
    assert f"{key}:" in workspace.fail("train", "bsds300", *settings, setting)
