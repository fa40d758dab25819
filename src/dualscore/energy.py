r"""From a network f(y, t) to an energy U(y, t) = −log p(y | t), or to a denoiser.

U = U_anchor(y, t) + d·c(t) + a(t)·[½⟨w, f(w, t)⟩ + Σ_i b_i(w, t)], b of two kinds, where every part
but ½⟨w, f⟩ can be left out: without anchor, offset, potentials and fading, and with w = y, it is the energy
of Guth et al. 2025.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vjp

from dualscore.gaussian import Gaussian, Standardized, StationaryGaussian


class Gradients(NamedTuple):
    """Derivatives of an energy; a denoiser has only the first."""

    image: Tensor
    """∇_y U, shape (B, C, H, W), in 1/pixel."""
    noise_variance: Tensor | None
    """∂_t U, shape (B,), in 1/pixel²."""
    energy: Tensor | None = None
    """U(y, t) itself, which comes with them, shape (B,), in nats."""

    def of(self, places: Tensor) -> "Gradients":
        """Those of the images at some places, int64, shape (n,)."""
        return Gradients(*(None if part is None else part[places] for part in self))  # type: ignore[arg-type]


class ScoreModel(nn.Module):
    """Anything with a score: what the objective trains and the estimators use."""

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:
        """∇_y U and, where the model has an energy and `time` asks for it, ∂_t U.

        Args:
            noisy: y, shape (B, C, H, W).
            noise_variance: t ≥ 0 in pixel², shape (B,).
            time: False leaves ∂_t U out.

        Returns:
            ∇_y U in 1/pixel, shape (B, C, H, W), and, if asked for, ∂_t U in 1/pixel², shape (B,).
        """
        raise NotImplementedError

    def averaged(self) -> "ScoreModel | None":
        """A denoiser that is the mean of the model's own ones, where it has several; else None."""
        return None

    def denoise(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """The posterior mean x̂ = y − t ∇_y U of y (B, C, H, W) at t (B,) (Miyasawa 1961; Tweedie)."""
        image_gradient = self.gradients(noisy, noise_variance, time=False).image
        return noisy - noise_variance[:, None, None, None] * image_gradient


class EnergyModel(ScoreModel):
    """Anything with an energy: `forward` maps y (B, C, H, W) and t (B,) to U(y, t) in nats, shape (B,)."""

    normalized = False
    """Whether ∫ exp(−U(y, t)) dy is one at every t by the energy's form, so that log Z is 0, not measured."""
    levels = 0
    """Grey levels of images whose probability U(x, 0) tells, −ln P(x) − d ln(levels − 1); 0 if not."""

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) in nats, up to one constant for all y and t, shape (B,)."""
        raise NotImplementedError

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:
        """∇_y U (B, C, H, W), ∂_t U (B,) if asked for, and U (B,); with a graph where autograd is on."""

        def total(y: Tensor, t: Tensor = noise_variance) -> tuple[Tensor, Tensor]:
            energies = self(y, t)
            return energies.sum(), energies

        # Not torch.autograd.grad: a convolution would compute the weights' gradient here too.
        inputs = (noisy, noise_variance) if time else (noisy,)
        forth: Any = vjp(total, *inputs, has_aux=True)
        value, pull, energy = forth
        # What the forward pass keeps out of autocast must stay out of it on the way back.
        with torch.autocast(noisy.device.type, enabled=False):
            found = pull(torch.ones_like(value))
        return Gradients(found[0], found[1] if time else None, energy)


BY_FORM = "by the energy's form, whatever its weights"
"""Where a log Z of 0 is from."""


def normalized_by_form(model: ScoreModel) -> bool:
    """Whether a model is an energy that needs no log Z."""
    return isinstance(model, EnergyModel) and model.normalized


class MappedEnergy(EnergyModel):
    """An energy that says where in an image it sits."""

    def energy_map(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) of y (B, C, H, W) at t (B,) split over pixels: nats, (B, H, W), summing to `forward`."""
        raise NotImplementedError


def of_any_size(model: ScoreModel) -> bool:
    """Whether an energy is normalized by its form at every size: no part of it is tied to one."""
    tied = any(isinstance(part, StationaryGaussian) for part in model.modules())
    return normalized_by_form(model) and isinstance(model, MappedEnergy) and not tied


class SlopeOffset(nn.Module):
    r"""c(t), c(t_max) = 0: the part of the energy that its gradient in the image cannot see.

    c is piecewise linear in ln t; the parameters are its slopes dc/d ln t between equally spaced knots,
    so that each receives the time term's gradient directly (values at the knots hardly train).
    Below t_min and above t_max it is constant.

    Args:
        t_min: variance at the first knot, in pixel², > 0.
        t_max: variance at the last knot.
        knots: number of knots, ≥ 2.
    """

    def __init__(self, t_min: float, t_max: float, knots: int = 64) -> None:
        super().__init__()
        if not 0.0 < t_min < t_max or knots < 2:
            raise ValueError(f"need 0 < t_min < t_max and knots ≥ 2, got {t_min}, {t_max}, {knots}")
        self.t_min, self.t_max = t_min, t_max
        self.spacing = math.log(t_max / t_min) / (knots - 1)
        self.slopes = nn.Parameter(torch.zeros(knots - 1))

    def forward(self, noise_variance: Tensor) -> Tensor:
        """c(t) in nats a dimension, shape (B,), for variances t of shape (B,)."""
        # Position from the top, in knots: every slope above t counts by the part of its span above t.
        clamped = noise_variance.clamp(self.t_min, self.t_max)
        below = torch.log(clamped / self.t_min) / self.spacing
        knot = torch.arange(len(self.slopes), dtype=below.dtype, device=below.device)
        span_above = (knot + 1.0 - below[:, None]).clamp(0.0, 1.0)
        return -self.spacing * (span_above @ self.slopes)


class Fading(nn.Module):
    """a(t) = λ/(λ + t): makes the residual vanish where the anchor is exact.

    Args:
        variance: λ in pixel², a scalar: the largest eigenvalue of the images' covariance Σ. Structure of that
            size remains until t is far above it; the pixel variance, which checkpoints from before have here,
            is many times smaller, and silences the residual where it is still needed.
    """

    variance: Tensor

    def __init__(self, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("variance", variance.clone().to(torch.get_default_dtype()))

    def forward(self, noise_variance: Tensor) -> Tensor:
        """a(t), dimensionless, shape (B,)."""
        return self.variance / (self.variance + noise_variance)


class LevelPhase(nn.Module):
    """Where each pixel lies within its grey level: cos and sin of 2π·255·y, fading as noise hides it.

    A density of dequantized images has the levels' edges in it; a network of smooth views would have to
    find that lattice by itself. After the Fourier features of Kingma et al. 2021, arXiv 2107.00630.
    """

    frequency = 2.0 * math.pi * 255.0

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """Phases of images (B, C, H, W) at noise variances t (B,): (B, 2C, H, W)."""
        # The factor is that of the mean over the noise: E cos(k(x + √t z)) = exp(−k²t/2) cos(kx).
        fade = torch.exp(-0.5 * self.frequency**2 * noise_variance)[:, None, None, None]
        angle = self.frequency * noisy
        return fade * torch.cat([angle.cos(), angle.sin()], dim=1)


class Energy(MappedEnergy):
    """A network's energy with optional anchor, offset c(t), fading and input whitening.

    Args:
        network: f(w, t): (B, C′, H, W), (B,) → (B, C, H, W), C′ the channels of all it sees. Further channels
            of its output are the potential b: what ½ log det Σ is to ½ yᵀΣ⁻¹y where the local covariance Σ
            depends on the image.
        anchor: the Gaussian whose energy is added; None for none.
        whiteners: Gaussians that turn y into what the network sees, side by side as channels; none for y
            itself. The anchor may be among them: its transform is then computed once.
        offset: c(t) in nats a dimension.
        fading: the residual's factor a(t).
        phase: shows the network the grey levels beside the other views.
        sizes: another potential, of the first view w (B, C, H, W) and t (B,): (B, 1, H, W) in nats a pixel.
    """

    def __init__(
        self,
        network: nn.Module,
        anchor: Gaussian | None = None,
        whiteners: Sequence[Gaussian] = (),
        offset: SlopeOffset | None = None,
        fading: Fading | None = None,
        phase: LevelPhase | None = None,
        sizes: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.anchor = anchor
        self.whiteners = nn.ModuleList(whiteners)
        self.offset = offset
        self.fading = fading
        self.phase = phase
        self.sizes = sizes

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) in nats up to one constant, shape (B,).

        Args:
            noisy: y, shape (B, C, H, W), pixels of clean images in [0, 1].
            noise_variance: t ≥ 0 in pixel², shape (B,).

        Returns:
            Energies, shape (B,).
        """
        energy, anchored = self._residual(noisy, noise_variance, (1, 2, 3))
        with torch.autocast(noisy.device.type, enabled=False):
            if anchored is not None:
                energy = energy + anchored.energy
            if self.offset is not None:
                energy = energy + noisy[0].numel() * self.offset(noise_variance)
        return energy

    def energy_map(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """Where in each image its energy sits: U(y, t) split over pixels, by the energy's own sums.

        A pixel has a(t)·[½ Σ_c w_c f_c + Σ_c b_c] over its channels and both potentials, the anchor's
        ½ Σ_c w_c² in the anchor's own whitened coordinates, and an even share of the anchor's
        ½ log det 2π(Σ + t) and of d·c(t). Whitening is symmetric, so a whitened pixel stays where it was. The
        split belongs to the energy's form, not to the density: other forms of the same U have other maps.

        Args:
            noisy: y, shape (B, C, H, W), pixels of clean images in [0, 1].
            noise_variance: t ≥ 0 in pixel², shape (B,).

        Returns:
            Nats a pixel, shape (B, H, W), summing to `forward` over H and W.
        """
        energies, anchored = self._residual(noisy, noise_variance, (1,))
        with torch.autocast(noisy.device.type, enabled=False):
            if anchored is not None:
                squares = 0.5 * anchored.whitened.square().sum(dim=1)
                # All of the anchor's energy that is not ½‖w‖²; so the map sums to it, whatever the Gaussian.
                rest = (anchored.energy - squares.sum(dim=(1, 2))) / noisy[0, 0].numel()
                energies = energies + squares + rest[:, None, None]
            if self.offset is not None:
                energies = energies + noisy.shape[1] * self.offset(noise_variance)[:, None, None]
        return energies

    def _residual(
        self, noisy: Tensor, noise_variance: Tensor, dims: tuple[int, ...]
    ) -> tuple[Tensor, Standardized | None]:
        """The faded network's part, summed over `dims` of (B, C, H, W), and what the anchor says."""
        with torch.autocast(noisy.device.type, enabled=False):
            anchored = None if self.anchor is None else self.anchor(noisy, noise_variance)
            views = [
                anchored.whitened
                if anchored is not None and whitener is self.anchor
                else whitener(noisy, noise_variance).whitened
                for whitener in self.whiteners
            ]
            views = views or [noisy]
            if self.phase is not None:
                views.append(self.phase(noisy, noise_variance))
            inputs = torch.cat(views, dim=1)
        outputs = self.network(inputs, noise_variance)
        with torch.autocast(noisy.device.type, enabled=False):
            outputs = outputs.to(inputs.dtype)
            channels = inputs.shape[1]
            energy: Tensor = 0.5 * (inputs * outputs[:, :channels]).sum(dims)
            if outputs.shape[1] > channels:
                energy = energy + outputs[:, channels:].sum(dims)
            if self.sizes is not None:
                energy = energy + self.sizes(views[0], noise_variance).sum(dims)
            if self.fading is not None:
                energy = self.fading(noise_variance).view(-1, *[1] * (energy.ndim - 1)) * energy
        return energy, anchored


class Denoiser(ScoreModel):
    """The baseline without an energy: x̂ = y − t f(y, t), so f stands where ∇_y U does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """f(y, t) as ∇_y U, shape (B, C, H, W); never a time derivative."""
        return Gradients(self.network(noisy, noise_variance).to(noisy.dtype), None)
