r"""Statistics and activation of a normalized layer, written so that only their input is kept.

Differentiated twice by autograd, the paper's normalization and GELU keep several feature maps a layer; these
keep one and compute the others again. Compiled, each of them is a single pass.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SPACE = (2, 3)
_DENSITY_AT_0 = 1.0 / math.sqrt(2.0 * math.pi)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(_SPACE, keepdim=True)
        return mean, (x - mean).square_().mean(_SPACE, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor) -> Tensor:  # noqa: ANN401
        result: Tensor = _MomentsBackward.apply(*ctx.saved_tensors, to_mean, to_variance)  # type: ignore[no-untyped-call]
        return result


class _MomentsBackward(torch.autograd.Function):
    """ḡ = m̄/n + (2/n) v̄ (x − m)."""

    @staticmethod
    def forward(x: Tensor, mean: Tensor, to_mean: Tensor, to_variance: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        slope = to_variance * (2.0 / pixels)
        return torch.addcmul(to_mean / pixels - mean * slope, x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ANN401, ARG004
        ctx.save_for_backward(inputs[0], inputs[1], inputs[3])

    @staticmethod
    def backward(ctx: Any, upper: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        x, mean, to_variance = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        slope = to_variance * (2.0 / pixels)
        total = upper.sum(_SPACE, keepdim=True)
        along = (upper * x).sum(_SPACE, keepdim=True) - mean * total
        return upper * slope, -slope * total, total / pixels, along * (2.0 / pixels)


class _ScaledGelu(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return F.gelu((x - mean).mul_(scale))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ANN401, ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        result: tuple[Tensor, ...] = _ScaledGeluBackward.apply(gradient, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return result


class _ScaledGeluBackward(torch.autograd.Function):
    """With c = x − m, u = s c, h = g GELU'(u): x̄ = s h, m̄ = −s Σh, s̄ = Σ h c."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centered = x - mean
        h = torch.ops.aten.gelu_backward(gradient, centered * scale)
        to_scale = centered.mul_(h).sum(_SPACE, keepdim=True)
        to_x = h.mul_(scale)
        return to_x, -to_x.sum(_SPACE, keepdim=True), to_scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ANN401, ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        of_x: Tensor,
        of_mean: Tensor,
        of_scale: Tensor,
    ) -> tuple[Tensor, ...]:
        gradient, x, mean, scale = ctx.saved_tensors
        centered = x - mean
        u = centered * scale
        of_x = of_x - of_mean
        of_h = torch.addcmul(of_x * scale, centered, of_scale)
        h = torch.ops.aten.gelu_backward(gradient, u)
        to_gradient = torch.ops.aten.gelu_backward(of_h, u)
        # GELU''(u) = φ(u) (2 − u²)
        square = u.square_()
        of_u = (2.0 - square).mul_(square.mul_(-0.5).exp_()).mul_(gradient).mul_(of_h).mul_(_DENSITY_AT_0)
        to_scale = torch.addcmul(of_u * centered, h, of_x).sum(_SPACE, keepdim=True)
        to_x = torch.addcmul(of_u.mul_(scale), h, of_scale)
        return to_gradient, to_x, -to_x.sum(_SPACE, keepdim=True), to_scale


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel over space, twice differentiable.

    Args:
        x: features (B, C, H, W).

    Returns:
        Both of shape (B, C, 1, 1).
    """
    result: tuple[Tensor, Tensor] = _Moments.apply(x)  # type: ignore[no-untyped-call]
    return result


def scaled_gelu(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """GELU((x − mean) · scale), exact, twice differentiable.

    Args:
        x: features (B, C, H, W).
        mean: shape (B, C, 1, 1).
        scale: shape (B, C, 1, 1).

    Returns:
        Features, shape (B, C, H, W).
    """
    result: Tensor = _ScaledGelu.apply(x, mean, scale)  # type: ignore[no-untyped-call]
    return result


# torch.compile cannot follow a hand-written derivative inside torch.func.grad; it need not look inside.
torch.compiler.allow_in_graph(moments)  # type: ignore[no-untyped-call]
torch.compiler.allow_in_graph(scaled_gelu)  # type: ignore[no-untyped-call]
