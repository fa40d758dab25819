r"""Convolutions whose second derivatives cost what they must.

A dual score matching step differentiates through a gradient. PyTorch derives a convolution's second
derivative with respect to its weight as a convolution whose kernel is as large as the image; here it is an
ordinary weight gradient. The values are the same, the sums are taken in another order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE = 3 * 10**8
"""Multiplications, at the input's size, from which derivatives written in Python save more than they cost."""


def convolve(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """What `layer(x)` gives, by whichever derivatives are faster: (B, C, H, W) to (B, C', H', W').

    In evaluation mode nobody derives a gradient with respect to the weights once more, and the hand-written
    ones would only cost: on a GPU most of the time of a gradient.
    """
    work = x.shape[0] * x.shape[2] * x.shape[3] * layer.weight.numel()
    # In bfloat16 on a CPU PyTorch 2.13 gets a weight's second derivative wrong: its kernel is too large.
    low = torch.is_autocast_enabled(x.device.type)
    if layer.training and (torch.compiler.is_compiling() or low or work >= WORTHWHILE):
        return hand_written(layer, x)
    result: Tensor = layer(x)
    return result


def hand_written(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """What `layer(x)` gives, twice differentiable at the price of ordinary convolutions.

    Use `torch.func.grad` for a gradient of the input alone: `torch.autograd.grad` computes that of the
    weight too, and throws it away.

    Args:
        layer: square, with one stride and one padding, without bias, dilation and groups.
        x: features (B, C, H, W).

    Returns:
        Features (B, C', H', W'), in autocast's precision where that is on.
    """
    weight = layer.weight
    device = x.device.type
    if torch.is_autocast_enabled(device):
        # Here, not inside: what is kept for the derivatives then has the products' precision as well.
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    padding = layer.padding[0]
    assert isinstance(padding, int)
    return _apply(isinstance(layer, nn.ConvTranspose2d), x, weight, layer.stride[0], padding)


def _apply(transposed: bool, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    result: Tensor = _Convolution.apply(transposed, x, weight, stride, padding)  # type: ignore[no-untyped-call]
    return result


# torch.compile cannot follow a hand-written derivative inside torch.func.grad; it need not look inside.
torch.compiler.allow_in_graph(_apply)  # type: ignore[no-untyped-call]


class _Convolution(torch.autograd.Function):
    """A convolution or its transpose: each is the other's derivative with respect to the input."""

    @staticmethod
    def forward(transposed: bool, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        convolution = F.conv_transpose2d if transposed else F.conv2d
        return convolution(x, weight, stride=stride, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG004
        ctx.transposed, x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        _, input_wanted, weight_wanted, *_ = ctx.needs_input_grad
        to_input = to_weight = None
        if input_wanted:
            to_input = _apply(not ctx.transposed, gradient, weight, ctx.stride, ctx.padding)
        if weight_wanted:  # the derivative of ⟨small, conv2d(large, weight)⟩
            small, large = (x, gradient) if ctx.transposed else (gradient, x)
            to_weight = torch.ops.aten.convolution_backward(
                small, large, weight, None, [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1,
                [False, True, False],
            )[1]  # fmt: skip
        return None, to_input, to_weight, None, None
