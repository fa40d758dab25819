r"""Densities that are known at every noise level: mixtures of Gaussians, the ground truth of this project.

If x is drawn from Σ_k w_k N(μ_k, Σ_k), then y = x + √t z from Σ_k w_k N(μ_k, Σ_k + t I), so that
U(y, t) = −ln Σ_k exp(ln w_k − U_k(y, t)) is exact and normalized, with U_k as in `dualscore.gaussian`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dualscore.energy import EnergyModel
from dualscore.gaussian import Gaussian, StationaryGaussian, WhiteGaussian
from dualscore.noise import normal_like


class GaussianMixture(EnergyModel):
    """A mixture of Gaussians, with its exact energy: a model like any other, but right.

    Args:
        weights: w_k > 0; they are normalized.
        components: as many Gaussians, over images of one shape.
        image_shape: (C, H, W).
    """

    log_weights: Tensor

    def __init__(
        self, weights: Sequence[float], components: Sequence[Gaussian], image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        if len(weights) != len(components) or not all(weight > 0 for weight in weights):
            raise ValueError(f"need a weight > 0 for each of {len(components)} components, got {weights}")
        logs = torch.tensor(weights, dtype=torch.get_default_dtype()).log()
        self.register_buffer("log_weights", logs - logs.logsumexp(0))
        self.components = nn.ModuleList(components)
        self.image_shape = image_shape

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) = −log p(y | t) in nats, normalized, for y (B, C, H, W) and t ≥ 0 (B,)."""
        return -torch.logsumexp(self.log_weights - self._energies(noisy, noise_variance), dim=1)

    def _energies(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        with torch.autocast(noisy.device.type, enabled=False):
            return torch.stack([c(noisy, noise_variance).energy for c in self.components], dim=1)

    def component(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """The component that most probably gave y, int64, shape (B,)."""
        return (self.log_weights - self._energies(noisy, noise_variance)).argmax(dim=1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw clean images, shape (count, C, H, W)."""
        return self.draw(count, generator)[0]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw clean images and which component each is of, shapes (count, C, H, W) and (count,)."""
        log_weights = self.log_weights
        which = torch.multinomial(log_weights.double().exp(), count, replacement=True, generator=generator)
        images = log_weights.new_empty(count, *self.image_shape)
        for k, component in enumerate(self.components):
            mine = which == k
            images[mine] = _sample(component, int(mine.sum()), self.image_shape, generator)
        return images, which

    def centers(self) -> Tensor:
        """Each component's mean, shape (K, C), in double precision."""
        return torch.stack([c.get_buffer("mean").double() for c in self.components])

    def moments(self) -> tuple[Tensor, Tensor]:
        """The exact mean (C,) and DCT spectrum (C, C, H, W) of the clean images, in double precision."""
        weights = self.log_weights.double().exp()
        means = self.centers()
        mean = weights @ means
        channels, height, width = self.image_shape
        spectrum = torch.zeros(channels, channels, height, width, dtype=torch.float64, device=mean.device)
        for weight, component, center in zip(weights, self.components, means, strict=True):
            spectrum += weight * _spectrum(component, self.image_shape)
            # The DCT of a constant image c is c·√(HW) at the constant frequency and 0 elsewhere.
            spectrum[:, :, 0, 0] += weight * height * width * torch.outer(center - mean, center - mean)
        return mean, spectrum


def _sample(
    component: nn.Module, count: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    if isinstance(component, StationaryGaussian):
        return component.sample(count, generator)
    assert isinstance(component, WhiteGaussian)
    mean = component.mean[:, None, None]
    return mean + component.variance.sqrt() * normal_like(mean.expand(count, *shape), generator)


def _spectrum(component: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    if isinstance(component, StationaryGaussian):
        axes, values = component.axes.double(), component.eigenvalues.double()
        return torch.einsum("hwck,khw,hwdk->cdhw", axes, values, axes)
    assert isinstance(component, WhiteGaussian)
    variance = component.variance.double()
    eye = torch.eye(shape[0], dtype=torch.float64, device=variance.device) * variance
    return eye[:, :, None, None].expand(-1, -1, *shape[1:])


def natural_spectrum(
    image_shape: tuple[int, int, int], exponent: float, floor: float, stretch: float = 1.0
) -> Tensor:
    """A spectrum like that of photographs: covariances of DCT coefficients, shape (C, C, H, W), float64.

    Power 1/|f|^exponent (2 for photographs), correlated colours, a share of white noise, `floor`, and a mean
    variance of 1. The texture is `stretch` times smoother along rows than along columns.
    """
    channels, height, width = image_shape
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64)[None, :] / width
    squared = rows.square() + (stretch * columns).square() + 1.0 / (height * width)
    power = squared.pow(-exponent / 2)
    power = (1.0 - floor) * power / power.mean() + floor
    if channels == 1:
        return power[None, None]
    colours = 0.3 * torch.eye(channels, dtype=torch.float64) + 0.7  # correlated, as photographs' are
    return colours[:, :, None, None] * power


def gaussian_textures(image_shape: tuple[int, int, int]) -> GaussianMixture:
    """A stationary colour Gaussian: mean ½, standard deviation 0.1, a natural spectrum."""
    mean = torch.full((image_shape[0],), 0.5)
    texture = StationaryGaussian(mean, 0.01 * natural_spectrum(image_shape, exponent=2.0, floor=0.15))
    return GaussianMixture([1.0], [texture], image_shape)


def texture_mixture(image_shape: tuple[int, int, int]) -> GaussianMixture:
    """Textures of two spectra (isotropic and oriented) and two contrasts, equally likely."""
    mean = torch.full((image_shape[0],), 0.5)
    components = []
    for stretch in (1.0, 2.0):
        spectrum = natural_spectrum(image_shape, exponent=2.5, floor=0.15, stretch=stretch)
        components += [StationaryGaussian(mean, deviation**2 * spectrum) for deviation in (0.06, 0.11)]
    return GaussianMixture([1.0] * len(components), components, image_shape)


def scale_mixture(image_shape: tuple[int, int, int]) -> GaussianMixture:
    """½ N(0, 1² I) + ½ N(0, 4² I): the paper's figure 1, at d = 1000 there."""
    zero = torch.zeros(image_shape[0])
    components = [WhiteGaussian(zero, torch.tensor(variance)) for variance in (1.0, 16.0)]
    return GaussianMixture([1.0, 1.0], components, image_shape)


def mode_mixture(image_shape: tuple[int, int, int]) -> GaussianMixture:
    """0.8 N(−2, 0.1 I) + 0.2 N(+2, 0.1 I): modes that share no mass, of unequal weights."""
    components = [
        WhiteGaussian(torch.full((image_shape[0],), center), torch.tensor(0.1)) for center in (-2.0, 2.0)
    ]
    return GaussianMixture([0.8, 0.2], components, image_shape)


DENSITIES = {
    "gaussian_textures": gaussian_textures,
    "texture_mixture": texture_mixture,
    "scale_mixture": scale_mixture,
    "mode_mixture": mode_mixture,
}
"""The known densities by name: image shape (C, H, W) → mixture."""
