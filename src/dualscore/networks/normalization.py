"""Two ways to normalize features, with the GELU that follows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualscore.networks.activation import moments, scaled_gelu

WORTHWHILE = 2**20
"""Numbers in a feature map from which on a function that keeps less of them is called for it."""


class FeatureNorm(nn.Module):
    """A normalization that noise modulates, told t by an embedding."""

    gain: nn.Parameter

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

    def __init__(self, channels: int, embedding_features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.modulation = nn.Linear(embedding_features, channels)

    def _scale(self, embedding: Tensor, variance: Tensor) -> Tensor:
        ratio = variance.mean(dim=1, keepdim=True) / (variance + self.epsilon)
        modulation = self.gain * (1.0 + self.modulation(embedding))
        scale: Tensor = torch.sqrt(ratio + self.epsilon) * modulation[:, :, None, None]
        return scale

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, C, H, W), given an embedding (B, E), normalized as the class says."""
        # Statistics and modulation keep at least single precision, also under autocast.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            mean = x.mean(dim=(2, 3), keepdim=True)
            centered = x - mean
            variance = centered.square().mean(dim=(2, 3), keepdim=True)
            normalized: Tensor = centered * self._scale(embedding, variance)
        return normalized

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
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.modulation = nn.Linear(embedding_features, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, C, H, W), given an embedding (B, E), normalized as the class says."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            inverse_size = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.epsilon)
            scale = self.gain * (1.0 + self.modulation(embedding))
            normalized: Tensor = x * inverse_size * scale[:, :, None, None] + self.shift[:, None, None]
        return normalized
