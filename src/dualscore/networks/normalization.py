r"""Two ways to normalize features, with the GELU that follows.

Differentiated twice by autograd, the paper's normalization and GELU keep several feature maps a layer. The
functions here save their inputs only and recompute the rest; compiled, each of them is a single pass.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE = 2**20
"""Feature maps with at least this many numbers use the functions that keep less."""
_SPACE = (2, 3)
_DENSITY_AT_0 = 1.0 / math.sqrt(2.0 * math.pi)


class FeatureNorm(nn.Module):
    """A normalization that noise modulates, told t by an embedding."""

    gain: nn.Parameter

    def __init__(self, channels: int, embedding_features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.modulation = nn.Linear(embedding_features, channels)

    def modulated(self, embedding: Tensor) -> Tensor:
        """The factor of each channel, gain · (1 + Linear(embedding)), shape (B, C, 1, 1)."""
        factor: Tensor = self.gain * (1.0 + self.modulation(embedding))
        return factor[:, :, None, None]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Normalize features of shape (B, C, H, W), given an embedding of shape (B, E)."""
        raise NotImplementedError

    def activate(self, x: Tensor, embedding: Tensor) -> Tensor:
        """GELU (exact) of the normalized features (B, C, H, W)."""
        return F.gelu(self(x, embedding))


class ScalePreservingNorm(FeatureNorm):
    """Equalise the channels' spatial variance while keeping the image's overall scale.

    Per channel c with spatial variance v_c: subtract the spatial mean, multiply by
    sqrt(mean_c(v) / (v_c + ε) + ε), by a learned gain and by 1 + Linear(embedding)_c.
    """

    epsilon = 1e-5

    def _scale(self, embedding: Tensor, variance: Tensor) -> Tensor:
        ratio = variance.mean(dim=1, keepdim=True) / (variance + self.epsilon)
        return torch.sqrt(ratio + self.epsilon) * self.modulated(embedding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, C, H, W), given an embedding (B, E), normalized as the class says."""
        # Statistics and modulation keep at least single precision, also under autocast.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            centered = x - x.mean(dim=_SPACE, keepdim=True)
            variance = centered.square().mean(dim=_SPACE, keepdim=True)
            return centered * self._scale(embedding, variance)

    def activate(self, x: Tensor, embedding: Tensor) -> Tensor:
        """GELU of the normalized features (B, C, H, W); in training in one function of few passes."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if not (self.training and (torch.compiler.is_compiling() or x.numel() >= WORTHWHILE)):
                return F.gelu(self(x, embedding))
            mean, variance = moments(x)
            return scaled_gelu(x, mean, self._scale(embedding, variance))


class PixelNorm(FeatureNorm):
    """Divide each pixel's features by their root mean square: smooth and rough places become alike.

    Then multiply by a learned gain and by 1 + Linear(embedding)_c, and add a learned shift.
    Nothing is homogeneous any more: the energy of an image need not be quadratic in its contrast.
    """

    epsilon = 0.1
    """So much that the energy stays smooth at places smoother than any noise it was trained on, where the
    probability flow may come: with 1e-3 it diverges there."""

    def __init__(self, channels: int, embedding_features: int) -> None:
        super().__init__(channels, embedding_features)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, C, H, W), given an embedding (B, E), normalized as the class says."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            inverse_size = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.epsilon)
            return x * inverse_size * self.modulated(embedding) + self.shift[:, None, None]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over space of x (B, C, H, W), each (B, C, 1, 1), twice differentiable."""
    result: tuple[Tensor, Tensor] = _applied(_Moments, x)
    return result


def scaled_gelu(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """GELU((x − mean) · scale) of x (B, C, H, W) and others (B, C, 1, 1), exact, twice differentiable."""
    result: Tensor = _applied(_ScaledGelu, x, mean, scale)
    return result


# torch.compile cannot follow a hand-written derivative inside torch.func.grad; it need not look inside.
torch.compiler.allow_in_graph(moments)  # type: ignore[no-untyped-call]
torch.compiler.allow_in_graph(scaled_gelu)  # type: ignore[no-untyped-call]


def _applied(function: type[torch.autograd.Function], *tensors: Tensor) -> Any:  # noqa: ANN401
    return function.apply(*tensors)  # type: ignore[no-untyped-call]


class _Keeping(torch.autograd.Function):
    """A function that keeps its input for its derivative."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ANN401, ARG004
        ctx.save_for_backward(*inputs)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(_SPACE, keepdim=True)
        return mean, (x - mean).square_().mean(_SPACE, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor) -> Any:  # noqa: ANN401
        return _applied(_MomentsBackward, *ctx.saved_tensors, to_mean, to_variance)


class _MomentsBackward(_Keeping):
    """x̄ = m̄/n + (2/n) v̄ (x − m); a bar is the derivative of the loss by what it stands over."""

    @staticmethod
    def forward(x: Tensor, mean: Tensor, to_mean: Tensor, to_variance: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        slope = to_variance * (2.0 / pixels)
        return torch.addcmul(to_mean / pixels - mean * slope, x, slope)

    @staticmethod
    def backward(ctx: Any, upper: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        x, mean, _, to_variance = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        slope = to_variance * (2.0 / pixels)
        total = upper.sum(_SPACE, keepdim=True)
        along = (upper * x).sum(_SPACE, keepdim=True) - mean * total
        return upper * slope, -slope * total, total / pixels, along * (2.0 / pixels)


class _ScaledGelu(_Keeping):
    @staticmethod
    def forward(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return F.gelu((x - mean).mul_(scale))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        return _applied(_ScaledGeluBackward, gradient, *ctx.saved_tensors)


class _ScaledGeluBackward(_Keeping):
    """With c = x − m, u = s c, h = g GELU'(u): x̄ = s h, m̄ = −s Σh, s̄ = Σ h c."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centered = x - mean
        h = torch.ops.aten.gelu_backward(gradient, centered * scale)
        to_scale = centered.mul_(h).sum(_SPACE, keepdim=True)
        to_x = h.mul_(scale)
        return to_x, -to_x.sum(_SPACE, keepdim=True), to_scale

    @staticmethod
    def backward(ctx: Any, of_x: Tensor, of_mean: Tensor, of_scale: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
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
