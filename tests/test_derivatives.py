"""Hand-written first and second derivatives, against PyTorch's own and against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad

from dualscore.networks.convolution import hand_written
from dualscore.networks.normalization import moments, scaled_gelu

LAYERS = {
    "same": nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "down": nn.Conv2d(3, 4, 2, stride=2, bias=False),
    "up": nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False),
}


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("kind", LAYERS)
def test_convolutions_have_the_derivatives_of_pytorchs(kind: str) -> None:
    """The loss is a function of a gradient, so that every derivative of first and second order is in it."""
    layer = LAYERS[kind].double()
    image = _random(2, 3, 6, 8)

    def loss(call: object) -> list[Tensor]:
        def energy(x: Tensor) -> Tensor:
            out: Tensor = call(x)  # type: ignore[operator]
            return out.sin().sum() + (out * out[:, :, :2, :2].sum()).square().sum()

        total = grad(energy)(image).square().sum()
        return list(torch.autograd.grad(total, [image, layer.weight]))

    for ours, theirs in zip(loss(lambda x: hand_written(layer, x)), loss(layer), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10)


def test_convolutions_pass_finite_differences() -> None:
    for layer in LAYERS.values():
        layer.double()

        def call(x: Tensor, weight: Tensor, layer: nn.Module = layer) -> Tensor:
            clone = type(layer)(3, 4, layer.kernel_size, layer.stride, layer.padding, bias=False)  # type: ignore[arg-type, call-arg]
            del clone.weight
            clone.weight = weight  # type: ignore[assignment]
            return hand_written(clone, x)  # type: ignore[arg-type]

        assert gradgradcheck(call, (_random(1, 3, 4, 4), layer.weight.detach().clone().requires_grad_()))


def test_moments_are_mean_and_variance_with_both_derivatives() -> None:
    x = _random(2, 3, 4, 5)
    mean, variance = moments(x)
    assert torch.allclose(mean, x.mean((2, 3), keepdim=True))
    assert torch.allclose(variance, x.var((2, 3), correction=0, keepdim=True))
    assert gradcheck(moments, (x,))
    assert gradgradcheck(moments, (x,))


def test_the_scaled_gelu_has_both_derivatives() -> None:
    inputs = (_random(2, 3, 4, 5), _random(2, 3, 1, 1, seed=1), _random(2, 3, 1, 1, seed=2))
    x, mean, scale = inputs
    assert torch.allclose(scaled_gelu(*inputs), F.gelu((x - mean) * scale))
    assert gradcheck(scaled_gelu, inputs)
    assert gradgradcheck(scaled_gelu, inputs)
