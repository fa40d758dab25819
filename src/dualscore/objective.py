r"""Dual score matching: the image gradient and the noise gradient of an energy, each to its target.

Source: Guth et al. 2025, arXiv 2506.05310, section 2.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscore.energy import EnergyModel, ScoreModel
from dualscore.noise import corrupt

LEVELS_APART = (0.1, 2.0)
"""How far from t, in nats of ln t, the level is that it is told from. Nearer ones the time term sees; of
images of 256 pixels those are hard to tell apart (ln t is seen to 0.09), farther ones no work."""


class DualLoss(NamedTuple):
    """Per-image losses, dimensionless, each of shape (B,)."""

    total: Tensor
    space: Tensor | None
    time: Tensor | None
    level: Tensor | None = None
    likelihood: Tensor | None = None

    def detach(self) -> "DualLoss":
        """The same losses without a graph."""
        return DualLoss(*(None if loss is None else loss.detach() for loss in self))  # type: ignore[arg-type]


def space_loss(image_gradient: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """(t/d) ‖∇_y U − (y−x)/t‖² = mean over pixels of (x̂ − x)²/t, dimensionless, shape (B,).

    From ∇_y U (B, C, H, W), z = (y − x)/√t of the same shape (as (y − x)/t cancels badly at small t), and t
    (B,).
    """
    error = noise_variance.sqrt()[:, None, None, None] * image_gradient - noise
    return error.square().mean(dim=(1, 2, 3))


def denoising_loss(model: ScoreModel, clean: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """The space loss alone, ‖x̂ − x‖²/(t d) at y = x + √t z, of any denoiser.

    From x and z of shape (B, C, H, W) and t in pixel², (B,); dimensionless, shape (B,).
    """
    gradients = model.gradients(corrupt(clean, noise, noise_variance), noise_variance, time=False)
    return space_loss(gradients.image, noise, noise_variance)


def time_loss(time_derivative: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """(t/d)² (∂_t U − d/2t + ‖y−x‖²/2t²)² = (½(1 − ‖z‖²/d) − t ∂_t U/d)², dimensionless, shape (B,).

    From ∂_t U (B,), the noise z (B, C, H, W) and its variance t in pixel² (B,).
    """
    target = 0.5 * (1.0 - noise.square().mean(dim=(1, 2, 3)))
    return (target - noise_variance * time_derivative / noise[0].numel()).square()


def level_loss(energy: Tensor, energy_elsewhere: Tensor) -> Tensor:
    """ln(1 + e^(U(y, t) − U(y, t′))), the log loss of telling t, whose noise y has, from t′, in nats, (B,).

    From U(y, t) and U(y, t′), both (B,). If both levels are as likely, the one that tells them apart best is
    U = −log p: what the time term asks of neighbouring levels, asked of distant ones at once.
    """
    return F.softplus(energy - energy_elsewhere)


def likelihood_loss(energy: Tensor, noise_variance: Tensor, dimension: int) -> Tensor:
    """U(y, t)/d − ½ ln 2πe t, the nats a dimension that y costs above the noise in it, of shape (B,).

    From normalized energies U in nats and t in pixel², both (B,). Its mean is the cross-entropy of noisy
    images less the entropy of the noise, which is at most theirs: ≥ 0, and lowest for U = −log p.
    """
    return energy / dimension - 0.5 * torch.log(2.0 * math.pi * math.e * noise_variance)


def maximum_likelihood(model: EnergyModel, clean: Tensor, noise: Tensor, noise_variance: Tensor) -> DualLoss:
    """The likelihood loss alone, at y = x + √t z: no gradient of U, so a third of a step's time.

    From x and z (B, C, H, W) and t (B,) in pixel²; of an energy that is normalized by its form.
    """
    energy = model(corrupt(clean, noise, noise_variance), noise_variance)
    found = likelihood_loss(energy, noise_variance, clean[0].numel())
    return DualLoss(found, None, None, likelihood=found)


def another_level(noise_variance: Tensor, uniform: Tensor, t_range: tuple[float, float]) -> Tensor:
    """Variances t′ to tell t (B,) from, 0.1 to 2 nats of ln t above or below, by u (B,) in [0, 1).

    Of log-uniform t, a pair is as likely one way round as the other, as `level_loss` needs it; so where t′
    would lie outside t_range, it is t itself, from which there is nothing to learn.
    """
    signed = 2.0 * uniform - 1.0
    low, high = LEVELS_APART
    apart = torch.where(signed < 0, signed * (high - low) - low, signed * (high - low) + low)
    elsewhere = noise_variance * apart.exp()
    inside = (elsewhere >= t_range[0]) & (elsewhere <= t_range[1])
    return torch.where(inside, elsewhere, noise_variance)


def dual_score_matching(
    model: ScoreModel,
    clean: Tensor,
    noise: Tensor,
    noise_variance: Tensor,
    time_weight: float = 1.0,
    level_weight: float = 0.0,
    likelihood_weight: float = 0.0,
    *,
    elsewhere: Tensor | None = None,
) -> DualLoss:
    r"""Match an energy's image and noise gradients to their denoising targets.

    With y = x + √t z, per image:
        (t/d) ‖∇_y U − (y−x)/t‖²  +  λ (t/d)² (∂_t U − d/2t + ‖y−x‖²/2t²)²
    Source: Guth et al. 2025, arXiv 2506.05310, section 2. To that a loss of telling noise levels apart may be
    added, after arXiv 2605.26850 and DiffCLF, arXiv 2601.21025.

    Args:
        model: an energy U = −log p(y|t) in nats, or a denoiser, which has no time term.
        clean: images x in [0, 1], shape (B, C, H, W); d = C·H·W.
        noise: standard normal z, shape (B, C, H, W).
        noise_variance: t, in pixel² (a variance, not a standard deviation), > 0, shape (B,).
        time_weight: λ, dimensionless; 0 gives single score matching, where ∂_t U is not computed.
        level_weight: weight of `level_loss`, which needs an energy, and one more evaluation of it.
        likelihood_weight: weight of `likelihood_loss`, for energies that are normalized by their form: of
            others it has no minimum.
        elsewhere: the other noise variances t′ of that loss, shape (B,); None leaves it out.

    Returns:
        The weighted sum and each of its terms, dimensionless, of shape (B,); None for those left out.

    Raises:
        ValueError: if shapes disagree or a noise variance is not positive (looked at on the CPU only:
            on a GPU it would hold up every step; the experiments' ranges are checked beforehand).
    """
    if clean.shape != noise.shape or noise_variance.shape != clean.shape[:1]:
        raise ValueError(
            f"shapes disagree: clean {tuple(clean.shape)}, noise {tuple(noise.shape)}, "
            f"noise variance {tuple(noise_variance.shape)}"
        )
    # A compiled function cannot look at its values.
    looking = noise_variance.device.type == "cpu" and not torch.compiler.is_compiling()
    if looking and not bool((noise_variance > 0).all()):
        raise ValueError(f"noise variances must be > 0, got {noise_variance.min().item():.3g}")
    noisy = corrupt(clean, noise, noise_variance)
    gradients = model.gradients(noisy, noise_variance, time=time_weight > 0)
    with torch.autocast(clean.device.type, enabled=False):
        space = space_loss(gradients.image, noise, noise_variance)
        if gradients.noise_variance is None:
            return DualLoss(space, space, None)
        time = time_loss(gradients.noise_variance, noise, noise_variance)
        total = space + time_weight * time
        if gradients.energy is None:
            return DualLoss(total, space, time)
        likelihood = level = None
        if likelihood_weight > 0:
            likelihood = likelihood_loss(gradients.energy, noise_variance, clean[0].numel())
            total = total + likelihood_weight * likelihood
        if elsewhere is not None:
            level = level_loss(gradients.energy, model(noisy, elsewhere))
            total = total + level_weight * level
        return DualLoss(total, space, time, level, likelihood)
