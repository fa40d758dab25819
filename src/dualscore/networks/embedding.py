"""How a network is told the noise variance, and the contrast of what it sees."""

import math

import torch
from torch import Tensor, nn

from dualscore.gaussian import QUANTIZATION_VARIANCE


class NoiseEmbedding(nn.Module):
    """Base: a fixed table of angles, [cos, sin], and a two-layer perceptron.

    Input: noise variances t, shape (B,), and the images that the network sees. Output: features (B, 256).

    Args:
        contrast: whether the logarithm of an image's root mean square is embedded beside t. Without it a
            homogeneous network can hardly tell a faint texture from a strong one (docs/likelihood.md).
    """

    frequencies = 32
    features = 256
    contrast_frequencies = (1.0, 2.0, 4.0)
    contrast_floor = 1e-6

    def __init__(self, contrast: bool = False) -> None:
        super().__init__()
        self.contrast = contrast
        inputs = 2 * self.frequencies + (1 + 2 * len(self.contrast_frequencies) if contrast else 0)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, self.features),
            nn.SiLU(),
            nn.Linear(self.features, self.features),
            nn.SiLU(),
        )

    def angles(self, noise_variance: Tensor) -> Tensor:
        """Angles in radians, shape (B, 32), for noise variances of shape (B,)."""
        raise NotImplementedError

    def forward(self, noise_variance: Tensor, image: Tensor) -> Tensor:
        """Embed noise variances t of shape (B,) and images of shape (B, C, H, W): features (B, 256)."""
        # Never in half precision: ∂_t U goes through here alone, and noise levels are told apart by it.
        with torch.autocast(noise_variance.device.type, enabled=False):
            angles = self.angles(noise_variance)
            inputs = [angles.cos(), angles.sin()]
            if self.contrast:
                power = image.square().mean(dim=(1, 2, 3)) + self.contrast_floor
                log_contrast = 0.5 * torch.log(power)[:, None]
                waves = log_contrast * log_contrast.new_tensor(self.contrast_frequencies)
                inputs += [log_contrast, waves.cos(), waves.sin()]
            features: Tensor = self.mlp(torch.cat(inputs, dim=1))
        return features


class LinearEmbedding(NoiseEmbedding):
    """The paper's: angles t·f_k with f_k = exp(−linspace(ln 1, ln 100, 32)).

    Nearly constant for t < 1e-2, where the network cannot tell noise levels apart.
    Source: Guth et al. 2025, released code.
    """

    table: Tensor

    def __init__(self, contrast: bool = False) -> None:
        super().__init__(contrast)
        # Rounded to single precision, as in the released code: at t = 1e3 the rounding shows.
        steps = torch.linspace(0.0, math.log(100.0), self.frequencies, dtype=torch.float32)
        self.register_buffer("table", torch.exp(-steps), persistent=False)

    def angles(self, noise_variance: Tensor) -> Tensor:
        """t·f_k in radians, shape (B, 32), for noise variances t in pixel², shape (B,)."""
        return noise_variance[:, None] * self.table.to(noise_variance.dtype)


class LogEmbedding(NoiseEmbedding):
    """Angles k·(π/48)·ln(1 + t/floor), k = 1..32: sees every noise level, t = 0 included.

    Noise far below the rounding of a step changes nothing, so all of it looks like t = 0, where likelihoods
    are read: with a smaller floor they would be extrapolated from the smallest t in training.
    """

    def angles(self, noise_variance: Tensor) -> Tensor:
        """k·(π/48)·ln(1 + t/floor) in radians, shape (B, 32), for variances t in pixel², shape (B,)."""
        return log_angles(noise_variance, self.frequencies)


def log_angles(noise_variance: Tensor, count: int) -> Tensor:
    """k·(π/48)·ln(1 + t/floor) in radians, k = 1..count, (B, count), for variances t in pixel², (B,).

    The floor is that of `LogEmbedding`, the variance of rounding; the period, 96 nats of ln t, is twice the
    widest range of noise levels, so no two levels coincide.
    """
    phase = (2 * math.pi / 96.0) * torch.log1p(noise_variance / QUANTIZATION_VARIANCE)
    k = torch.arange(1, count + 1, dtype=noise_variance.dtype, device=noise_variance.device)
    return phase[:, None] * k
