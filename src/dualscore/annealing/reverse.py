r"""A step back along the diffusion, from noise variance t down to s, by the energy's own gradients.

The mean of y_s given y_t is y_t − (t−s) ∇_y U and its covariance (t−s)(I − (t−s) ∇²U), both exactly. ∇²U is
not known, but its trace is, by the heat equation: ΔU = 2 ∂_t U + ‖∇_y U‖², the second gradient of dual score
matching for free. So the step is drawn from

    q(y_s | y_t) = N(y_t − (t−s) ∇_y U, (t−s)(I − (t−s) H)),

with H of that trace: H = λ I with λ = ΔU/d, or, where the clean images' Gaussian N(μ, Σ) is known,
H = (βΣ + t I)^(−1), that of an image of contrast β times the average, one β an image: low
frequencies keep more of the noise than high ones do, and textured images less than smooth ones.
Source: Bao et al. 2022, Analytic-DPM, arXiv 2201.06503, for the variance of all images together.
"""

import math

import torch
from torch import Tensor

from dualscore.annealing.conditions import NOTHING, Condition
from dualscore.annealing.metropolis import Random, free_noise
from dualscore.energy import Gradients
from dualscore.gaussian import StationaryGaussian

_CONTRASTS = torch.linspace(-16.0, 6.0, 89, dtype=torch.float64) * math.log(2.0)
"""ln β where the curvature is tabulated, in steps of a quarter of an octave."""


def contrast(curvature: Tensor, prior: StationaryGaussian, noise_variance: float) -> Tensor:
    """β for which N(μ, βΣ + t I) has an image's mean curvature ΔU/d, the mean of 1/(βλ_k + t).

    From curvatures in 1/pixel², shape (B,); β is between 2^−16 and 2^6, float64, shape (B,).
    """
    scale = _CONTRASTS.to(curvature.device).flip(0)  # falling, so that the curvature rises
    spectrum = prior.eigenvalues.double().flatten()
    table = torch.stack([(1.0 / (beta * spectrum + noise_variance)).mean() for beta in scale.exp()])
    wanted = curvature.double().clamp(table[0], table[-1])
    above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
    part = (wanted - table[above - 1]) / (table[above] - table[above - 1])
    return torch.lerp(scale[above - 1], scale[above], part).exp()


def step_down(
    found: Gradients,
    images: Tensor,
    levels: tuple[float, float],
    generator: Random,
    condition: Condition = NOTHING,
    prior: StationaryGaussian | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw y_s given y_t (B, C, H, W); t > s > 0 are noise variances in pixel².

    Without ∂_t U in `found` the variance is (t−s) s/t, the smallest; with `prior` it is one a frequency.
    Returns y_s and log N(y_t; y_s, (t−s) I) − log q(y_s | y_t), float64, shape (B,). A ValueError refuses
    held pixels with a variance by frequency.
    """
    t, s = levels
    if prior is not None and condition.free is not None:
        raise ValueError("held pixels and a variance by frequency do not go together: leave the prior out")
    # The share of the forward step's variance that is left; U's Hessian is below I/t, so this is ≥ s/t.
    left = images.new_full((len(images), 1, 1, 1), s / t)
    if found.noise_variance is not None:
        curvature = 2.0 * found.noise_variance + found.image.square().sum(dim=(1, 2, 3))
        mean = (curvature / images[0].numel()).nan_to_num(1.0 / t)
        if prior is None:
            left = (1.0 - (t - s) * mean).clamp(s / t, 1.0)[:, None, None, None]
        else:
            beta = contrast(mean, prior, t).to(images.dtype)[:, None, None, None]
            left = 1.0 - (t - s) / (beta * prior.eigenvalues + t)
    free = torch.ones_like(images[:1]) if condition.free is None else condition.free
    noise = free_noise(images, generator, condition)
    spread = ((t - s) * left).sqrt() * noise
    drift = (t - s) * found.image * free
    change = (spread if prior is None else prior.synthesize(spread)) - drift
    forward = change.double().square().sum(dim=(1, 2, 3)) / (t - s)
    back = noise.double().square().sum(dim=(1, 2, 3))
    log_determinant = (left.double().log() * free).sum(dim=(1, 2, 3))
    return images + change, 0.5 * (back - forward + log_determinant)
