"""What a model says can be differentiated by whoever asks, and costs no graph where nobody does."""

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, vmap

import dualscore
from dualscore.densities import texture_mixture
from dualscore.energy import Denoiser, Energy
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.networks import LogEmbedding, RadialEnergy, UNet, convolution, normalization
from test_gaussian import random_spectrum
from test_speed import model_and_batch

pytestmark = pytest.mark.filterwarnings("error:Converting a tensor with requires_grad")
DATA = Path(__file__).parent / "data"
GRAY, COLOUR = (1, 8, 8), (3, 8, 8)
SHAPES = {"radial": GRAY, "density": GRAY}
SHAPES |= dict.fromkeys(("released", "imagenet64_dual", "imagenet64_best"), COLOUR)
every_energy = pytest.mark.parametrize("name", SHAPES)


@cache
def model(name: str) -> ImageModel:
    """In double precision; the released one is loaded, the others' weights can be trained."""
    torch.manual_seed(0)
    if name == "released":
        found = dualscore.load(DATA / "energy_small.pth.tar").double()
        found.log_normalizer = 3.0
        return found
    if name == "radial":
        found = RadialEnergy(torch.rand(2, 1), 1e-2, 0.1, hidden=8)
    elif name == "density":
        found = texture_mixture(GRAY)
    elif name == "denoiser":
        found = Denoiser(UNet(1, LogEmbedding(), width=4, scales=1, layers=2))
    else:
        found, _ = model_and_batch(name, torch.float64, "data.size=8", "network.layers=2")
    return ImageModel(found, log_normalizer=3.0).double().eval()


def drawn(name: str, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise variances and a direction in which images move."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(count, *SHAPES.get(name, GRAY), generator=generator, dtype=torch.float64)
    t = 0.01 + torch.rand(count, generator=generator, dtype=torch.float64)
    return y, t, torch.randn(y.shape, generator=generator, dtype=torch.float64)


def along(energy: Callable[..., Tensor], *inputs: Tensor, **options: int) -> tuple[Tensor, ...]:
    """Gradients as PyTorch's users take them."""
    asked = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(energy(*asked, **options).sum(), asked)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


class Nothing(nn.Module):
    def forward(self, image: Tensor, noise_variance: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(image)


def test_an_anchor_alone_has_the_derivatives_of_its_gaussian() -> None:
    """With P = (Σ + t)⁻¹: ∇U = P(y − μ), ∇²U = P, ∂_t U = ½ tr P − ½‖P(y − μ)‖², ∇x̂ = ΣP."""
    torch.manual_seed(0)
    gaussian = StationaryGaussian(torch.rand(2), 0.1 * random_spectrum(2, 3, 2)).double()
    m = ImageModel(Energy(Nothing(), gaussian, [gaussian])).double()
    y, t = torch.rand(4, 2, 3, 2).double(), torch.rand(4).double()
    basis = gaussian.synthesize(torch.eye(12).double().reshape(12, 2, 3, 2)).flatten(1).T
    sigma = basis @ torch.diag(gaussian.eigenvalues.flatten()) @ basis.T
    precision = torch.linalg.inv(sigma + t[:, None, None] * torch.eye(12))
    score = (precision @ (y - gaussian.mean[:, None, None]).flatten(1)[..., None])[..., 0]

    of_image, of_variance = along(m.energy, y, t)
    assert close(of_image.flatten(1), score, 1e-6)  # the axes are stored in single precision
    trace = precision.diagonal(dim1=1, dim2=2).sum(1)
    assert close(of_variance, 0.5 * (trace - score.square().sum(1)), 1e-6)
    (of_map,) = along(lambda y: m.energy_map(y, t), y)
    assert close(of_map.flatten(1), score, 1e-6)
    for i in range(4):
        curvature = hessian(lambda y, i=i: m.energy(y[None], t[i])[0])(y[i])
        assert close(curvature.reshape(12, 12), precision[i], 1e-6)
        response = jacrev(lambda y, i=i: m.denoise(y[None], t[i])[0])(y[i])
        assert close(response.reshape(12, 12), sigma @ precision[i], 1e-6)


@every_energy
def test_denoisers_and_log_probabilities_have_the_energys_gradient(name: str) -> None:
    m, (y, t, _) = model(name), drawn(name)
    of_image, of_variance = along(m.energy, y, t)
    assert close(m.denoise(y, t), y - t[:, None, None, None] * of_image)
    exact = m.score_model.gradients(y, t)
    assert close(of_image, exact.image.detach())
    assert exact.noise_variance is not None
    assert close(of_variance, exact.noise_variance.detach())
    (clean,) = along(m.energy, y)
    assert close(along(m.log_prob, y)[0], -clean)
    assert close(along(m.bits_per_dim, y)[0], clean / (y[0].numel() * math.log(2)))
    one = torch.tensor(0.3, requires_grad=True)  # a number for all, in another precision
    (total,) = torch.autograd.grad(m.energy(y, one).sum(), one)
    assert close(total.double(), along(m.energy, y, torch.full_like(t, 0.3))[1].sum(), 1e-5)


@every_energy
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    m, (y, t, v) = model(name), drawn(name)
    step = 1e-5 / float(v.norm())
    above, below = (along(m.energy, y + sign * step * v, t)[0] for sign in (1, -1))
    expected = (above - below) / (2 * step)

    asked, asked_t = y.clone().requires_grad_(), t.clone().requires_grad_()
    (first,) = torch.autograd.grad(m.energy(asked, asked_t).sum(), asked, create_graph=True)
    twice, mixed = torch.autograd.grad((first * v).sum(), (asked, asked_t))
    assert close(twice, expected, 1e-6)

    def total(y: Tensor) -> Tensor:
        return m.energy(y, t).sum()

    assert close(jvp(grad(total), (y,), (v,))[1], twice)
    assert close(grad(lambda y: jvp(total, (y,), (v,))[1])(y), twice)
    # x̂ = y − t ∇U: forwards, backwards, and along t.
    scale = t[:, None, None, None]
    response = v - scale * twice
    assert close(jvp(lambda y: m.denoise(y, t), (y,), (v,))[1], response)
    of_image, of_t = along(lambda y, t: v * m.denoise(y, t), y, t)
    assert close(of_image, response)
    assert close(of_t, -(v * first.detach()).sum((1, 2, 3)) - t * mixed)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 7), st.sampled_from(["radial", "density"]), st.integers(0, 9))
def test_batches_do_not_change_gradients(count: int, batch_size: int, name: str, seed: int) -> None:
    y, t, _ = drawn(name, count, seed)
    whole, parts = along(model(name).energy, y, t), along(model(name).energy, y, t, batch_size=batch_size)
    assert all(close(part, full) for part, full in zip(parts, whole, strict=True))


@pytest.mark.parametrize("name", [*SHAPES, "denoiser"])
def test_nothing_keeps_a_graph_where_nothing_asks_for_one(name: str) -> None:
    m, (y, t, _) = model(name), drawn(name)
    asked = y.clone().requires_grad_()
    kept: list[Tensor] = []

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved)
        return saved

    def results(images: Tensor) -> list[Tensor]:
        found = [m.denoise(images, t)]
        if name != "denoiser":
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
                found += [m.energy(images, t), m.log_prob(images), m.bits_per_dim(images)]
        return found

    expected = results(y)
    assert not any(found.requires_grad for found in expected)
    with torch.no_grad():
        assert not any(found.requires_grad for found in results(asked))
    with torch.inference_mode():
        inside = results(asked)
        assert all(torch.equal(*pair) for pair in zip(inside, expected, strict=True))
        assert not any(found.requires_grad for found in inside)
    assert not kept

    sum(found.sum() for found in results(asked)).backward()
    assert kept or name == "denoiser"
    assert asked.grad is not None
    assert all(weight.grad is None for weight in m.parameters())


def test_models_from_files_have_constant_weights_and_ones_own_can_be_trained() -> None:
    assert not any(weight.requires_grad for weight in model("released").parameters())
    own, (y, t, _) = copy.deepcopy(model("radial")), drawn("radial")
    before = own.energy(y, t)
    optimizer = torch.optim.SGD(own.score_model.parameters(), lr=1e-3)
    own.score_model(y, t).sum().backward()
    optimizer.step()
    assert (own.energy(y, t) < before).all()


@pytest.mark.parametrize("name", ["released", "imagenet64_best", "density", "denoiser"])
def test_inference_mode_leaves_everything_usable(name: str) -> None:
    y, t, v = drawn(name)
    with torch.inference_mode():
        made = copy.deepcopy(model(name))
        inputs = y.clone(), t.clone()
        inside = made.denoise(*inputs)
    assert torch.equal(inside, model(name).denoise(y, t))
    assert torch.equal(made.denoise(*inputs), inside)
    assert not made.denoise(*inputs).is_inference()
    expected = along(model(name).denoise, y, t)
    assert all(close(*pair) for pair in zip(along(made.denoise, y, t), expected, strict=True))
    assert close(along(lambda t: made.denoise(inputs[0], t), t)[0], expected[1])
    assert close(*(jvp(lambda y, m=m: m.denoise(y, t), (y,), (v,))[1] for m in (made, model(name))))


def test_autocast_is_for_networks_and_changes_no_type() -> None:
    for name, tolerance in {"density": 0.0, "radial": 0.0, "released": 0.05, "imagenet64_best": 0.05}.items():
        m = copy.deepcopy(model(name)).float()
        y, t, _ = (x.float() for x in drawn(name))
        expected = [m.energy(y, t), m.denoise(y, t), *along(m.energy, y, t)]
        with torch.autocast("cpu", torch.bfloat16):
            found = [m.energy(y, t), m.denoise(y, t), *along(m.energy, y, t)]
        assert close(found[0], expected[0], tolerance)
        # What PyTorch takes back under autocast, it multiplies in half precision wherever it came from.
        assert all(close(*pair, 0.05) for pair in zip(found, expected, strict=True))
        assert {x.dtype for x in found} == {torch.float32}


def test_results_have_the_models_precision_and_gradients_the_images() -> None:
    single = copy.deepcopy(model("released")).float()
    y, t, _ = drawn("released")
    assert single.energy(y, t).dtype == single.denoise(y, t).dtype == torch.float32
    found, expected = along(single.energy, y, t), along(model("released").energy, y, t)
    assert all(x.dtype == torch.float64 for x in found)
    assert all(close(*pair, 1e-4) for pair in zip(found, expected, strict=True))
    assert model("released").energy(y.float(), t.float()).dtype == torch.float64


@every_energy
def test_vmap_gives_what_a_loop_does(name: str) -> None:
    m, (y, t, _) = model(name), drawn(name, 6)
    groups, levels = y.unflatten(0, (2, 3)), t.unflatten(0, (2, 3))
    for function in (m.energy, m.denoise):
        assert close(vmap(function)(groups, levels).flatten(0, 1), function(y, t))
    assert close(
        vmap(m.energy)(groups, levels[:, 0]), m.energy(y, levels[:, :1].expand(2, 3).flatten()).view(2, 3)
    )
    assert close(vmap(m.log_prob)(groups).flatten(), m.log_prob(y))
    assert close(vmap(m.bits_per_dim)(groups).flatten(), m.bits_per_dim(y))
    gradient = along(m.energy, y, t)

    def of_one(y: Tensor, t: Tensor) -> Tensor:
        return m.energy(y[None], t)[0]

    for found, expected in zip(vmap(grad(of_one, argnums=(0, 1)))(y, t), gradient, strict=True):
        assert close(found, expected)
    assert close(grad(lambda y: vmap(of_one)(y, t).sum())(y), gradient[0])
    assert close(along(lambda y: vmap(of_one)(y, t), y)[0], gradient[0])


def test_shapes_are_checked_where_values_cannot_be() -> None:
    m = model("radial")
    with pytest.raises(ValueError, match="images must have shape"):
        vmap(m.energy)(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="a number or one an image"):
        vmap(m.energy)(torch.rand(2, 3, 1, 8, 8), torch.rand(2, 2))
    with pytest.raises(ValueError, match="floating-point"):
        vmap(m.log_prob)(torch.ones(2, 3, 1, 8, 8, dtype=torch.uint8))
    for ask in (grad, hessian):  # here they can
        with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
            ask(lambda x: m.log_prob(x).sum())(torch.full((1, 1, 2, 2), 1.5))
        with pytest.raises(ValueError, match="must be ≥ 0"):
            ask(lambda x: m.energy(x, -1.0).sum())(torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("name", ["released", "imagenet64_dual", "denoiser"])
def test_a_copy_is_a_model_of_its_own(name: str) -> None:
    m, (y, t, _) = model(name), drawn(name)
    expected, gradients = m.denoise(y, t), along(m.denoise, y, t)
    other = copy.deepcopy(m)
    assert torch.equal(other.denoise(y, t), expected)
    assert all(close(*pair) for pair in zip(along(other.denoise, y, t), gradients, strict=True))
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    assert not torch.allclose(other.denoise(y, t), expected)
    assert torch.equal(m.denoise(y, t), expected)


@pytest.mark.parametrize("name", ["released", "imagenet64_dual"])
def test_two_threads_find_what_one_does(name: str) -> None:
    m = model(name)

    def work(seed: int) -> list[Tensor]:
        y, t, v = drawn(name, seed=seed)  # PyTorch's forward derivatives are of one thread at a time
        curvature = along(lambda y, t: v * m.denoise(y, t), y, t)
        return [m.energy(y, t), m.denoise(y, t), *along(m.energy, y, t), *curvature]

    serial = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        for found, expected in zip(pool.map(work, range(8)), serial, strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_images_have_no_energies_and_keep_their_shape(dtype: torch.dtype) -> None:
    m = copy.deepcopy(model("imagenet64_best")).to(dtype)
    for device in ("cpu", "meta"):  # where only the device can be right
        none = torch.zeros(0, *COLOUR, device=device, requires_grad=True)
        t = torch.zeros(0, device=device, requires_grad=True)
        m = m.to(device)
        found = [m.energy(none, t), m.denoise(none, t), m.energy_map(none, t), m.log_prob(none)]
        assert [tuple(x.shape) for x in found] == [(0,), (0, *COLOUR), (0, 8, 8), (0,)]
        assert all(x.dtype == dtype and x.device.type == device for x in found)
        assert m.bits_per_dim(none.detach()).shape == (0,)
        for result in found[:3]:
            gradients = torch.autograd.grad(result.sum(), (none, t))
            assert [x.shape for x in gradients] == [none.shape, t.shape]
    assert not m.energy(none.detach(), 0.1).requires_grad
    with pytest.raises(ValueError, match="images must have shape"):
        m.energy(torch.zeros(0, 8, 8))


def test_large_networks_in_training_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their derivatives are written by hand."""
    m, (y, t, v) = copy.deepcopy(model("imagenet64_dual")), drawn("imagenet64_dual")

    def curvature() -> Tensor:
        return along(lambda y: v * m.denoise(y, t), y)[0]

    expected = curvature()
    for module in (convolution, normalization):
        monkeypatch.setattr(module, "WORTHWHILE", 0)
    m.train()
    assert close(curvature(), expected)
