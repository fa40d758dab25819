"""The energy that the chain rule normalizes: its integral, what each factor may see, what it learns."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import dualscore
from dualscore.densities import gaussian_textures
from dualscore.energy import EnergyModel
from dualscore.likelihood import dequantized_bits_per_dim
from dualscore.networks import CausalEnergy, SeveralOrders
from dualscore.networks.grey_levels import cell_density, likely_levels
from dualscore.networks.orders import put_back, reordered
from dualscore.noise import corrupt, log_uniform
from dualscore.objective import dual_score_matching, likelihood_loss, maximum_likelihood
from fakes import photograph
from workspace import EVERYTHING, TINY, Workspace


def shaken(channels: int = 1, seed: int = 0, levels: int = 0) -> CausalEnergy:
    """One whose weights say nothing in particular, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    model = CausalEnergy(
        torch.full((channels,), 0.5), torch.tensor(0.05), hidden=16, layers=2, radius=2, levels=levels
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.15 * noise + (parameter if parameter.ndim == 1 else 0.0))
    return model


def integral(model: EnergyModel, at: list[Tensor], shape: tuple[int, ...], t: float) -> float:
    """∫ exp(−U(y, t)) dy over a grid, a pixel's places one dimension of it."""
    grid = torch.stack(torch.meshgrid(*at, indexing="ij"), dim=-1).reshape(-1, *shape)
    variances = torch.full((len(grid),), t, dtype=torch.float64)
    parts = zip(grid.split(20_000), variances.split(20_000), strict=True)
    mass = sum(float(torch.exp(-model(y, v)).sum()) for y, v in parts)
    return mass * math.prod(float(places[1] - places[0]) for places in at)


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 1e-6, 1e-3, 1e-1, 1.0, 100.0])
def test_the_density_of_a_pixel_integrates_to_one(t: float) -> None:
    reach = 12.0 * math.sqrt(0.25 + t)  # so wide that nothing is left of the first pixel's Gaussians
    places = torch.linspace(0.5 - reach, 0.5 + reach, 40_001, dtype=torch.float64)
    assert integral(shaken(), [places], (1, 1, 1), t) == pytest.approx(1.0, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1), (2, 1, 1)])
def test_so_does_that_of_two(shape: tuple[int, int, int]) -> None:
    model, t = shaken(shape[0]), 0.02
    with torch.no_grad():  # no component so wide that the grid would end before it
        for factor in model.factors:
            factor.mixture.bias[-6:] = -0.5  # type: ignore[union-attr, index]
    places = torch.linspace(-4.0, 5.0, 601, dtype=torch.float64)
    assert integral(model, [places, places], shape, t) == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 1e-7, 3e-7, 6e-7, 1e-6, 1e-5, 1e-2])
def test_so_does_that_of_a_pixel_with_grey_levels(t: float) -> None:
    """Among sixteen, whose steps are as wide as 17 of 8 bits; their edges lie between the places."""
    wide = 17.0**2
    places = (torch.arange(-40 * 15 * 40, 41 * 15 * 40, dtype=torch.float64) + 0.5) / (15 * 40)
    assert integral(shaken(levels=16), [places], (1, 1, 1), wide * t) == pytest.approx(1.0, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_without_noise_it_is_the_exact_code_length_of_images_on_levels(channels: int) -> None:
    """Σ P(x) = 1 over all images of one row of two pixels, and P(x) is the density anywhere in x's cell."""
    levels, model = 5, shaken(channels, levels=5)
    values = levels ** (2 * channels)
    digits = torch.arange(values)[:, None] // levels ** torch.arange(2 * channels) % levels
    x = digits.double().view(values, channels, 1, 2) / (levels - 1)
    t, d = torch.zeros(values, dtype=torch.float64), 2 * channels
    log_p = -model(x, t) - d * math.log(levels - 1)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=d * 2e-4)  # 1e-4 of it is the mixture's
    inside = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x + 0.98 * (inside - 0.5) / (levels - 1)
    likely = log_p > math.log(1e-2)
    assert int(likely.sum()) >= 3
    torch.testing.assert_close(model(y, t)[likely], model(x, t)[likely], atol=0.02 * d, rtol=0.0)


@torch.no_grad()
def test_the_levels_are_of_the_weights_and_weights_from_before_have_none() -> None:
    y, t = torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.full((2,), 1e-7, dtype=torch.float64)
    knows, knew = shaken(levels=256), shaken()
    assert not torch.allclose(knows(y, t), knew(y, t))
    rebuilt = shaken(seed=1)
    rebuilt.load_state_dict(knows.state_dict())
    assert torch.equal(rebuilt(y, t), knows(y, t))
    before = {name: value for name, value in knew.state_dict().items() if name != "grey_levels"}
    again = shaken(seed=1, levels=256)
    again.load_state_dict(before)
    assert torch.equal(again(y, t), knew(y, t))


@torch.no_grad()
def test_weights_from_before_know_the_cells_edges_half_as_far() -> None:
    y, ts = torch.rand(3, 1, 4, 4, dtype=torch.float64), [0.02, 0.3]  # of a step
    knows, before = shaken(levels=256), shaken(levels=256)
    before.load_state_dict({name: value for name, value in knows.state_dict().items() if name != "sharp"})
    same = []
    for deviations in ts:
        t = torch.full((3,), (deviations / 255.0) ** 2, dtype=torch.float64)
        same.append(torch.allclose(knows(y, t), before(y, t), rtol=1e-3))
    assert same == [True, False]
    again = shaken(seed=1)
    again.load_state_dict(before.state_dict())
    assert torch.equal(again(y, t), before(y, t))


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.45])
def test_cells_have_the_density_of_levels_with_uniform_and_normal_noise(sigma: float) -> None:
    """Against the sum over all levels, of one mixture; five of them are near enough."""
    generator = torch.Generator().manual_seed(2)
    means = torch.rand(1, 40, 3, generator=generator, dtype=torch.float64)
    deviations = 0.02 * torch.rand(1, 40, 3, generator=generator, dtype=torch.float64) + 1e-3
    log_weights = torch.randn(1, 40, 3, generator=generator, dtype=torch.float64).log_softmax(dim=2)
    own = means[..., 0] + deviations[..., 0] * torch.randn(1, 40, generator=generator, dtype=torch.float64)
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 255.0
    normal = torch.distributions.Normal(means[..., None], deviations[..., None])
    below = (log_weights.exp()[..., None] * normal.cdf(edges)).sum(dim=2)
    below[..., 0], below[..., -1] = 0.0, 1.0
    noise = torch.distributions.Normal(0.0, sigma / 255.0)
    reached = noise.cdf(own[..., None] - edges[:-1]) - noise.cdf(own[..., None] - edges[1:])
    density = 255.0 * (below.diff(dim=2) * reached).sum(dim=2)
    assert float(density.min()) > 1e-3
    found = cell_density(own, torch.tensor([sigma], dtype=torch.float64), log_weights, means, deviations, 256)
    torch.testing.assert_close(found, density.log(), atol=1e-3, rtol=0.0)


@torch.no_grad()
def test_earlier_pixels_are_seen_as_the_levels_they_had_until_noise_hides_them() -> None:
    y = torch.linspace(-0.1, 1.1, 5000, dtype=torch.float64).view(1, 1, 1, -1)
    step = 1.0 / 255.0
    nearest = (y / step).round() * step
    for deviations in (0.0, 0.05, 0.1, 2.0):  # of the noise, in steps
        t = torch.tensor([(deviations * step) ** 2], dtype=torch.float64)
        seen = likely_levels(y, t, 256)
        inside = ((y - nearest).abs() / step + 4.0 * deviations + 0.01) < 0.5
        assert bool(inside.any()) == (deviations < 0.12)
        torch.testing.assert_close(seen[inside], nearest[inside], atol=0.01 * step, rtol=0.0)
        assert bool((seen.diff(dim=3) >= -1e-12).all())
    torch.testing.assert_close(seen, y)
    edge = torch.tensor([100.5 * step - 1e-9, 100.5 * step + 1e-9], dtype=torch.float64)
    for deviations in (0.2, 0.3, 0.4, 0.45, 0.5):
        t = torch.tensor([(deviations * step) ** 2], dtype=torch.float64)
        jump = likely_levels(edge.view(1, 1, 1, 2), t, 256).diff()
        assert float(jump.abs()) < 1e-4 * step


SAME = {1: [0], 2: [0, 1], 4: [0, 1, 2, 3], 8: list(range(8))}
"""Orders whose images have the same energy."""


@torch.no_grad()
@pytest.mark.parametrize("orders", SAME)
def test_the_mean_over_orders_is_that_of_densities_and_knows_no_direction(orders: int) -> None:
    single = shaken(3)
    model = SeveralOrders(single, orders).double().eval()
    y = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t = torch.tensor([1e-3, 0.5], dtype=torch.float64)
    each = torch.stack([single(reordered(y, order), t) for order in range(orders)])
    assert orders == 1 or bool((each.std(dim=0) > 0.1).all())
    mean = np.exp(-(each - each[0]).numpy()).mean(axis=0)
    expected = each[0] - torch.from_numpy(np.log(mean))
    torch.testing.assert_close(model(y, t), expected)
    torch.testing.assert_close(model.energy_map(y, t).sum(dim=(1, 2)), expected)
    assert bool((model(y, t) <= each[0] + math.log(orders)).all())
    for order in range(8):
        assert torch.equal(put_back(reordered(y, order), order), y)
        same = torch.allclose(model(reordered(y, order), t), expected, rtol=1e-9)
        assert same == (order in SAME[orders])


@torch.no_grad()
def test_the_mean_over_orders_integrates_to_one_and_training_takes_the_first() -> None:
    single = shaken()
    single.factors[0].mixture.bias[-6:] = -0.5  # type: ignore[union-attr, index]
    model = SeveralOrders(single, 8).double().eval()
    places = torch.linspace(-4.0, 5.0, 151, dtype=torch.float64)
    assert integral(model, [places, places], (1, 1, 2), 0.1) == pytest.approx(1.0, abs=1e-4)
    y, t = torch.rand(2, 1, 3, 3, dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert torch.equal(model.train()(y, t), single(y, t))
    assert torch.equal(model.energy_map(y, t), single.energy_map(y, t))
    with pytest.raises(ValueError, match="one of"):
        SeveralOrders(single, 3)


@pytest.mark.parametrize(("channels", "levels"), [(1, 0), (3, 0), (3, 256)])
def test_a_factor_sees_only_what_came_before_and_the_map_sums_to_the_energy(
    channels: int, levels: int
) -> None:
    model, generator = shaken(channels, levels=levels), torch.Generator().manual_seed(1)
    y = torch.rand(3, channels, 9, 8, generator=generator, dtype=torch.float64).requires_grad_()
    t = torch.tensor([1e-6, 1e-4, 1e-2], dtype=torch.float64)  # without noise a level has no slope
    nats = model.energy_map(y, t)
    torch.testing.assert_close(nats.sum(dim=(1, 2)), model(y, t))
    for row, column in ((0, 0), (0, 5), (4, 3), (8, 7)):
        (slope,) = torch.autograd.grad(nats[:, row, column].sum(), y, retain_graph=True)
        felt = slope.abs().sum(dim=(0, 1)).flatten()
        place = row * 8 + column
        assert float(felt[place]) > 0  # its own value
        assert not felt[place + 1 :].any()
        assert bool((felt[:place] > 0).all())  # at least by the brightness so far


def test_channels_come_one_after_the_other() -> None:
    model = shaken(3)
    y = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y.requires_grad_()
    t = torch.tensor([1e-3], dtype=torch.float64)
    for channel in range(3):
        nats = model._nats(y, t)[0, 5, channel]
        (slope,) = torch.autograd.grad(nats, y)
        felt = slope[0, :, 1, 1] != 0
        order = [1, 0, 2]  # green, red, blue
        assert felt.tolist() == [order.index(other) <= channel for other in range(3)]


@torch.no_grad()
def test_rows_below_change_nothing_above() -> None:
    model = shaken()
    y = torch.rand(2, 1, 12, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = torch.tensor([1e-5, 1e-1], dtype=torch.float64)
    torch.testing.assert_close(model.energy_map(y, t)[:, :5], model.energy_map(y[:, :, :5], t))


@pytest.mark.parametrize("levels", [0, 256])
def test_edges_beside_flat_places_have_finite_gradients(levels: int) -> None:
    """The window is seen in units of the contrast, of which an edge may be a hundred."""
    model = shaken(levels=levels).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    y = torch.zeros(4, 1, 8, 8)
    y[0, :, :3], y[1, :, 1, 4], y[2, :, :, ::3], y[3] = 1.0, 1.0, 1.0, 300.0 * torch.eye(8)
    for t in (0.0, 1e-7, 1e-3):
        gradients = model.gradients(y, torch.full((4,), t))
        assert gradients.noise_variance is not None
        assert gradients.energy is not None
        for found in (gradients.image, gradients.noise_variance, gradients.energy):
            assert bool(found.isfinite().all())
        model.zero_grad()
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        dual_score_matching(model, y, noise, torch.full((4,), t + 1e-9), 1.0, 0.0, 1.0).total.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("levels", [0, 256])
def test_it_begins_near_nothing_known_and_every_image_has_a_finite_energy(levels: int) -> None:
    torch.manual_seed(0)
    model = CausalEnergy(torch.tensor([0.5]), torch.tensor(0.05), levels=levels)
    y = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8), 50.0 * torch.randn(2, 1, 8, 8)])
    for t in (0.0, 1e-7, 1e-5, 1.0, 200.0):
        variances = torch.full((4,), t)
        assert bool(model(y, variances).isfinite().all())
        gradients = model.gradients(y, variances)
        assert gradients.noise_variance is not None
        assert bool(gradients.image.isfinite().all())
        assert bool(gradients.noise_variance.isfinite().all())


def test_the_likelihood_loss_is_never_below_zero_in_the_mean() -> None:
    """Of a Gaussian of variance 1: ½ ln((1 + t)/t) nats a dimension, the information in what is seen."""
    t = torch.tensor([1e-4, 1.0, 100.0])
    entropy = 64 * 0.5 * torch.log(2 * math.pi * math.e * (1 + t))
    torch.testing.assert_close(likelihood_loss(entropy, t, 64), 0.5 * torch.log1p(1 / t))


def test_both_objectives_teach_a_known_density() -> None:
    """A stationary texture, whose entropy is known: by the likelihood first, then by both scores too."""
    density, generator = gaussian_textures((1, 8, 8)), torch.Generator().manual_seed(0)
    mean, spectrum = density.moments()
    torch.manual_seed(0)
    model = CausalEnergy(mean, spectrum.diagonal().mean(), hidden=32, layers=2)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def noisy(count: int) -> tuple[Tensor, Tensor, Tensor]:
        places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        clean = density.sample(count, generator).float()
        return clean, torch.randn(clean.shape, generator=generator), log_uniform(places, 1e-4, 10.0)

    for step in range(400):
        loss = maximum_likelihood if step < 300 else dual_score_matching
        weights = {} if step < 300 else {"likelihood_weight": 1.0}
        found = loss(model, *noisy(32), **weights).total.mean()  # type: ignore[operator]
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    clean, noise, _ = noisy(512)
    for t in (1e-3, 1e-1):
        variances = torch.full((512,), t)
        y = corrupt(clean, noise, variances)
        with torch.no_grad():
            above = (model(y, variances) - density(y, variances)).mean() / 64
        assert -0.01 < float(above) < 0.06  # nats a dimension above the truth; begins 0.4 above


STEPS = ["optim.warmup_steps=0", "optim.schedule=halving", "trainer.validate_every=1", "evaluate.chains=2"]


@pytest.fixture
def settings(official_shards: Callable[[str], Path]) -> list[str]:
    """Of runs whose first two steps are of the likelihood."""
    few = ["objective.likelihood_steps=2", "network.orders=2"]
    return [*TINY, f"data.path={official_shards('bsds500')}", *STEPS, *few]


@pytest.fixture
def whole(trained_once: Callable[..., Path], settings: list[str]) -> Path:
    """The run of four steps, never stopped, all measured."""
    folder = trained_once("causal", "bsds16_causal", *settings, EVERYTHING, "trainer.max_steps=4")
    return folder / "runs/bsds16_causal"


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_learns_by_the_likelihood_first_and_stopped_goes_on_to_the_same_bits(
    workspace: Workspace, settings: list[str], whole: Path, stop: int
) -> None:
    """Stopped in the first part, of two steps, and in the second."""
    workspace.run("train", "bsds16_causal", *settings, f"trainer.max_steps={stop}", "--runs", "runs/a")
    printed = workspace.run("train", "bsds16_causal", *settings, "trainer.max_steps=4", "--runs", "runs/a")
    assert f"goes on from step {stop}" in printed
    places = [workspace.folder / "runs/a/bsds16_causal", whole]
    resumed, never = (workspace.checkpoint(str(place))["state_dict"] for place in places)
    assert all(torch.equal(resumed[key], never[key]) for key in never)


def test_its_log_z_is_zero_wherever_it_is_told(whole: Path) -> None:
    report = json.loads((whole / "evaluation.json").read_text())
    assert report["normalization"]["value"] == report["normalization"]["stderr"] == 0.0
    assert report["normalization"]["mass"] is None
    assert not list((whole / "evaluation").glob("mass*"))  # no chains are drawn for it
    (mass,) = [check for check in report["checks"] if check["check"] == "mass"]
    assert (mass["word"], mass["value"]) == ("consistent", 0.0)
    assert "the mass was not measured" not in report["verdict"]
    for found in (report["bits_per_dim"]["paper"], report["train"]):
        assert found["log_normalizer"]["value"] == 0.0
    model = dualscore.load(whole / "checkpoints/last.ckpt")
    assert model.log_normalizer == model.log_normalizer_stderr == 0.0
    assert str(model.normalization) == "log Z 0, mass one, by the energy's form, whatever its weights"
    events = EventAccumulator(str(whole), size_guidance={"scalars": 0}).Reload()
    steps = {name: [e.step for e in events.Scalars(f"train/{name}_loss")] for name in ("likelihood", "space")}
    assert (len(steps["likelihood"]), len(steps["space"])) == (4, 2)


def test_a_checkpoint_from_before_grey_levels_has_none(tmp_path: Path, whole: Path) -> None:
    now = whole / "checkpoints/last.ckpt"
    content = torch.load(now, weights_only=True)
    weights = content["state_dict"]
    content["state_dict"] = {name: weights[name] for name in weights if not name.endswith("grey_levels")}
    torch.save(content, tmp_path / "before.ckpt")
    for path, levels in ((now, 256), (tmp_path / "before.ckpt", 0)):
        model = dualscore.load(path).score_model
        assert isinstance(model, SeveralOrders)
        assert isinstance(model.energy, CausalEnergy)
        assert model.energy.levels == levels


def test_it_scores_photographs_of_any_size_as_they_are(workspace: Workspace, whole: Path) -> None:
    model = dualscore.load(whole).score_model
    assert isinstance(model, SeveralOrders)
    assert model.orders == 2
    for width, height in ((16, 16), (37, 22)):
        image, out = workspace.folder / f"{width}.png", f"scores_{width}"
        gray = photograph("astronaut").crop((0, 0, width, height)).convert("L")
        gray.save(image)
        workspace.run("score", str(whole), str(image), "--out", out, "--psnr", "20")
        scores = json.loads((workspace.folder / out / "scores.json").read_text())
        pixels = torch.from_numpy(np.asarray(gray).copy())[None, None] / 255.0
        with torch.no_grad():
            bits = dequantized_bits_per_dim(model(pixels, torch.zeros(1)), width * height)  # a code length
        assert scores["mean_bits_per_dim"] == pytest.approx(float(bits), abs=1e-5)
        assert scores["log_normalizer"] == 0.0
        assert "estimated" not in scores["model"]
