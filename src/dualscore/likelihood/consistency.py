r"""Identities that every −log p satisfies, image by image.

- I-MMSE: U(x, 0) = E U(y_b, b) − ½ ∫_0^b (d − d_eff(x, t)) d ln t for *every* image x; d_eff = E‖x − x̂‖²/t
  is from the model's own denoiser (Guo, Shamai, Verdú 2005). ∇_yU alone fixes the right side, ∂_tU the
  left one.
- The heat equation: 2 ∂_t U = ΔU − ‖∇_y U‖² at every y and t. Its mean over noise is the I-MMSE gap's slope
  in ln t (Stein), so that only its value at single images says something new.
- Second moments: E⟨z, √t ∇U⟩ = E t‖∇U‖², and E[½(1 − ‖z‖²/d) t ∂_tU/d] = E (t ∂_tU/d)², over images too:
  both targets are unbiased for what they are regressed on.

A mean over images is zero too where errors cancel between them. Of an error e with two estimates e + n₁,
e + n₂ whose noises are independent, the product's mean is E e²: without bias, and nothing cancels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dualscore.energy import Gradients


def energy_rises(
    energy: Tensor, levels: Sequence[float], variances: Tensor, space: Tensor, width: float, dimension: int
) -> Tensor:
    """The energy's rise between neighbouring noise levels, less the I-MMSE integral of the same images.

    Args:
        energy: U(y_t, t) in nats at each level, shape (n, L).
        levels: rising noise variances t_1 < … < t_L, in pixel².
        variances: where the denoiser was measured, one t a stratum of ln t, in pixel², shape (n, S).
        space: the space losses d_eff/d there, shape (n, S).
        width: of a stratum, in nats of ln t; the strata cover the levels.
        dimension: d.

    Returns:
        Nats, shape (n, L − 1).
    """
    integrand = 0.5 * dimension * width * (1.0 - space.double())
    gaps = []
    for j, (low, high) in enumerate(pairwise(levels)):
        # Draws of strata that lie partly inside count only inside: unbiased, whatever the levels are.
        expected = torch.where((variances >= low) & (variances < high), integrand, 0.0).sum(dim=1)
        gaps.append(energy[:, j + 1].double() - energy[:, j].double() - expected)
    return torch.stack(gaps, dim=1)


def rise_from_nothing(
    clean_energy: Tensor,
    energy: Tensor,
    level: float,
    variances: Tensor,
    space: Tensor,
    width: float,
    dimension: int,
    t_min: float,
    jumps: bool,
) -> Tensor:
    """The energy's rise from t = 0 to a noise level, less what I-MMSE says.

    Below the first stratum d − d_eff is proportional to t^p, so that its integral over ln t is 1/p of its
    value at t_min: that at the first stratum's t, scaled. Of a smooth density p is 1. Of one with jumps, as
    dequantized images have at the edges of their cells, only what lies within √t of a jump counts: p is ½.

    Args:
        clean_energy: U(x, 0) in nats, shape (n,).
        energy: U(y_t, t) at the level, shape (n,).
        level: that noise variance, in pixel².
        variances: as in `energy_rises`, shape (n, S).
        space: as there, shape (n, S).
        width: as there.
        dimension: d.
        t_min: where the first stratum begins, in pixel².
        jumps: whether the images' density has jumps.

    Returns:
        Nats, shape (n,).
    """
    integrand = 0.5 * dimension * (1.0 - space.double())
    power = 0.5 if jumps else 1.0
    below = integrand[:, 0] * (t_min / variances[:, 0].double()) ** power / power
    expected = torch.where(variances < level, width * integrand, 0.0).sum(dim=1) + below
    return energy.double() - clean_energy.double() - expected


def steadied(space: Tensor, square: Tensor, slope: Tensor) -> Tensor:
    """Space losses with most of the noise's own fluctuation taken out, of the same mean.

    Where little is denoised the loss is nearly ‖z‖²/d, whose mean is 1: it serves as a control variate.

    Args:
        space: ‖x − x̂‖²/(t d), shape (n, S).
        square: ‖z‖²/d of the same noise, shape (n, S).
        slope: how much of the one is in the other, independent of these draws, such as other draws' mean
            loss, shape (S,).

    Returns:
        Losses, shape (n, S).
    """
    return space.double() - slope.double() * (square.double() - 1.0)


def heat_residual(gradients: Gradients, laplacian: Tensor, noise_variance: Tensor) -> Tensor:
    """(t/d) (2 ∂_t U − ΔU + ‖∇_y U‖²), dimensionless, shape (B,); 0 for every −log p.

    Args:
        gradients: ∇_y U, shape (B, C, H, W), and ∂_t U, shape (B,).
        laplacian: ΔU or an unbiased estimate of it, shape (B,).
        noise_variance: t in pixel², shape (B,).

    Returns:
        The residual of each image.
    """
    assert gradients.noise_variance is not None
    square = gradients.image.square().sum(dim=(1, 2, 3))
    residual = 2.0 * gradients.noise_variance - laplacian + square
    return noise_variance * residual / gradients.image[0].numel()


def space_moments(space: Tensor, square: Tensor, gradient_square: Tensor) -> Tensor:
    """(t‖∇U‖² − ⟨z, √t ∇U⟩)/d, whose mean is 0, and ½ of it the error of dE U/d ln t a dimension.

    Args:
        space: ‖√t ∇U − z‖²/d, any shape.
        square: ‖z‖²/d, of the same shape.
        gradient_square: t‖∇U‖²/d, of the same shape.

    Returns:
        Dimensionless, of the same shape.
    """
    product = 0.5 * (gradient_square.double() + square.double() - space.double())
    return gradient_square.double() - product


def time_moments(slope: Tensor, square: Tensor) -> Tensor:
    """(t ∂_tU/d)² − ½(1 − ‖z‖²/d) t ∂_tU/d, whose mean is 0 where ∂_tU is right.

    Where ∂_tU errs by e nats a dimension and nat of ln t, on its own, the mean is E e².

    Args:
        slope: t ∂_tU/d, any shape.
        square: ‖z‖²/d, of the same shape.

    Returns:
        Squared nats a dimension and nat of ln t, of the same shape.
    """
    target = 0.5 * (1.0 - square.double())
    return slope.double().square() - target * slope.double()
