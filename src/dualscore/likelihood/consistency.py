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

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dualscore.energy import Gradients
from dualscore.gaussian import StationaryGaussian

FEWEST_FITTED = 32
"""Images that control variates are fitted on, at least; with fewer there are none."""


def energy_rises(
    energy: Tensor, levels: Sequence[float], variances: Tensor, space: Tensor, width: Tensor, dimension: int
) -> Tensor:
    """The energy's rise between neighbouring noise levels, less the I-MMSE integral of the same images.

    Args:
        energy: U(y_t, t) in nats at each level, shape (n, L).
        levels: rising noise variances t_1 < … < t_L, in pixel².
        variances: where the denoiser was measured, one t a stratum of ln t, in pixel², shape (n, S).
        space: the space losses d_eff/d there, shape (n, S).
        width: of each stratum, in nats of ln t, shape (S,); the strata cover the levels.
        dimension: d.

    Returns:
        Nats, shape (n, L − 1).
    """
    integrand = 0.5 * dimension * width * (1.0 - space.double())
    gaps = [integrand[:, :0]]
    for j, (low, high) in enumerate(pairwise(levels)):
        # Draws of strata that lie partly inside count only inside: unbiased, whatever the levels are.
        expected = torch.where((variances >= low) & (variances < high), integrand, 0.0).sum(dim=1)
        gaps.append((energy[:, j + 1].double() - energy[:, j].double() - expected)[:, None])
    return torch.cat(gaps, dim=1)


def rise_from_nothing(
    clean_energy: Tensor,
    energy: Tensor,
    level: float,
    variances: Tensor,
    space: Tensor,
    width: Tensor,
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
        width: as there, shape (S,).
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


def aligned_strata(levels: Sequence[float], widest: float) -> list[float]:
    """Edges of strata of ln t of which every level is one.

    Args:
        levels: rising noise variances in pixel², two or more.
        widest: width of a stratum in nats of ln t, at most.

    Returns:
        Rising variances from the first level to the last.
    """
    edges = [levels[0]]
    for low, high in pairwise(levels):
        parts = math.ceil(math.log(high / low) / widest - 1e-9)
        edges += [low * (high / low) ** (k / parts) for k in range(1, parts)] + [high]
    return edges


def linear_deviation(
    prior: StationaryGaussian, clean: Tensor, noise: Tensor, noise_variance: Tensor, low: float, high: float
) -> Tensor:
    """The best linear denoiser's space loss less its mean over noise and a stratum, known for every image.

    x − x̂ = (1 − a)(x − μ) − a √t z in the eigenbasis of Σ, a = λ/(λ + t). With c = x − μ there, the loss has
    the mean Σ [t c² + λ²]/(λ + t)² / d over z, whose integral over ln t is
    Σ [ln(t/(λ + t)) + (λ − c²)/(λ + t)] / d.

    Args:
        prior: N(μ, Σ).
        clean: x, shape (B, C, H, W).
        noise: z, of the same shape.
        noise_variance: t in pixel², uniform in ln t from `low` to `high`, shape (B,).
        low: lower edge of the stratum, in pixel².
        high: its upper edge.

    Returns:
        Dimensionless, of mean 0 over z and t, shape (B,).
    """
    t, spectrum = noise_variance.double()[:, None, None, None], prior.eigenvalues.double()
    centred = prior.analyze(clean - prior.mean[:, None, None]).double()
    kept = spectrum / (spectrum + t)
    error = (1.0 - kept) * centred / t.sqrt() - kept * prior.analyze(noise).double()

    def integral(edge: float) -> Tensor:
        total = spectrum + edge
        return (edge / total).log() + (spectrum - centred.square()) / total

    known = (integral(high) - integral(low)) / math.log(high / low)
    return (error.square() - known).mean(dim=(1, 2, 3))


def energy_deviation(
    prior: StationaryGaussian, clean: Tensor, noise: Tensor, noise_variance: Tensor
) -> Tensor:
    """The Gaussian's energy of a noisy image less its mean over the noise, which is known for every image.

    Args:
        prior: N(μ, Σ).
        clean: x, shape (B, C, H, W).
        noise: z, of the same shape.
        noise_variance: t in pixel², shape (B,).

    Returns:
        Nats, of mean 0 over z, shape (B,).
    """
    t = noise_variance[:, None, None, None]
    coefficients, white = prior.analyze(clean - prior.mean[:, None, None]), prior.analyze(noise)
    change = t * (white.square() - 1.0) + 2.0 * t.sqrt() * coefficients * white
    return 0.5 * (change / (prior.eigenvalues + t)).double().sum(dim=(1, 2, 3))


def steadied(values: Tensor, *controls: Tensor) -> Tensor:
    """Values with the noise taken out that they share with control variates; their mean stays what it is.

    How much of a control is in the values is fitted on every other image and used on the rest, so that what
    is subtracted has mean zero exactly.

    Args:
        values: one an image and column, shape (n, S).
        *controls: of mean zero for every image, each of shape (n, S).

    Returns:
        Values of the same means, shape (n, S).
    """
    values = values.double()
    if len(values) < 2 * FEWEST_FITTED:
        return values
    stacked = torch.stack([control.double() for control in controls], dim=2).transpose(0, 1)  # (S, n, K)
    found = values.clone()
    for mine, others in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        centred = stacked[:, others] - stacked[:, others].mean(dim=1, keepdim=True)
        target = (values[others] - values[others].mean(dim=0)).mT[:, :, None]
        # The pseudoinverse: two controls may be one and the same, where noise hides every structure.
        slopes = torch.linalg.pinv(centred, rtol=1e-9) @ target
        found[mine] -= (stacked[:, mine] @ slopes)[:, :, 0].mT
    return found


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
