r"""Identities that every −log p satisfies, image by image.

- I-MMSE: U(x, 0) = E U(y_b, b) − ½ ∫_0^b (d − d_eff(x, t)) d ln t for *every* image x; d_eff = E‖x − x̂‖²/t
  is from the model's own denoiser (Guo, Shamai, Verdú 2005). ∇_yU alone fixes the right side, ∂_tU the
  left one.
- The heat equation: 2 ∂_t U = ΔU − ‖∇_y U‖² at every y and t. Its mean over noise is the I-MMSE gap's slope
  in ln t (Stein), so that only its value at single images says something new.
- Second moments: E⟨z, √t ∇U⟩ = E t‖∇U‖², and E[½(1 − ‖z‖²/d) t ∂_tU/d] = E (t ∂_tU/d)², over images too:
  both targets are unbiased for what they are regressed on.
- The noise level's rank: −U(y, ·) is the log-likelihood of ln t given y. If t is drawn from a prior, here a
  few points of ln t around a level, and y = x + √t z, the rank of t in its posterior is uniform on [0, 1]
  over images x: its mean tells an energy that is tilted in t, its spread one that is tilted one way on some
  images and another way on others (Cook, Gelman, Rubin 2006, Validation of software using posterior
  quantiles).

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

FEWEST_FITTED = 32  # images that control variates are fitted on, at least; with fewer there are none


def energy_rises(
    energy: Tensor, levels: Sequence[float], variances: Tensor, space: Tensor, width: Tensor, dimension: int
) -> Tensor:
    """The energy's rise between levels t_1 < … < t_L, less the I-MMSE integral of the same images, in nats.

    From U(y_t, t) in nats at each level (n, L), and where the denoiser was measured, one t a stratum of ln t:
    its variances and space losses d_eff/d, of shape (n, S), and the strata's widths in nats of ln t, (S,),
    which cover the levels. Shape (n, L − 1).
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
    """The energy's rise from t = 0 to a noise level, less what I-MMSE says, in nats, shape (n,).

    Below the first stratum, which begins at t_min, d − d_eff is proportional to t^p, so that its integral
    over ln t is 1/p of its value at t_min: that at the first stratum's t, scaled. Of a smooth density p is 1.
    Of one with jumps, as dequantized images have at the edges of their cells, only what lies within √t of a
    jump counts: p is ½. U(x, 0) and U(y_t, t) are of shape (n,), the rest is as in `energy_rises`.
    """
    integrand = 0.5 * dimension * (1.0 - space.double())
    power = 0.5 if jumps else 1.0
    below = integrand[:, 0] * (t_min / variances[:, 0].double()) ** power / power
    expected = torch.where(variances < level, width * integrand, 0.0).sum(dim=1) + below
    return energy.double() - clean_energy.double() - expected


def aligned_strata(levels: Sequence[float], widest: float) -> list[float]:
    """Edges of strata of ln t, at most `widest` nats wide, of which every one of the rising levels is one."""
    edges = [levels[0]]
    for low, high in pairwise(levels):
        parts = math.ceil(math.log(high / low) / widest - 1e-9)
        edges += [low * (high / low) ** (k / parts) for k in range(1, parts)] + [high]
    return edges


def linear_deviation(
    prior: StationaryGaussian, clean: Tensor, noise: Tensor, noise_variance: Tensor, low: float, high: float
) -> Tensor:
    """The best linear denoiser's space loss less its mean over noise and a stratum, shape (B,).

    x − x̂ = (1 − a)(x − μ) − a √t z in the eigenbasis of Σ, a = λ/(λ + t). With c = x − μ there, the loss has
    the mean Σ [t c² + λ²]/(λ + t)² / d over z, whose integral over ln t is Σ [ln(t/(λ + t)) + (λ − c²)/(λ +
    t)] / d. So it is of mean 0 for every image x (B, C, H, W), over z and over t (B,) uniform in ln t from
    `low` to `high`.
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
    """The Gaussian's energy of y = x + √t z less its mean over z, in nats, shape (B,); x, z (B, C, H, W)."""
    t = noise_variance[:, None, None, None]
    coefficients, white = prior.analyze(clean - prior.mean[:, None, None]), prior.analyze(noise)
    change = t * (white.square() - 1.0) + 2.0 * t.sqrt() * coefficients * white
    return 0.5 * (change / (prior.eigenvalues + t)).double().sum(dim=(1, 2, 3))


def steadied(values: Tensor, *controls: Tensor) -> Tensor:
    """Values (n, S) without the noise they share with controls (n, S), each of mean zero for every image.

    How much of a control is in the values is fitted on every other image and used on the rest, so that what
    is subtracted has mean zero exactly, and the mean stays what it is.
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

    ΔU (B,) may be an unbiased estimate.
    """
    assert gradients.noise_variance is not None
    square = gradients.image.square().sum(dim=(1, 2, 3))
    residual = 2.0 * gradients.noise_variance - laplacian + square
    return noise_variance * residual / gradients.image[0].numel()


def space_moments(space: Tensor, square: Tensor, gradient_square: Tensor) -> Tensor:
    """(t‖∇U‖² − ⟨z, √t ∇U⟩)/d, whose mean is 0; half of it is the error of d(E U)/d ln t, per dimension.

    From ‖√t ∇U − z‖²/d, ‖z‖²/d and t‖∇U‖²/d, all of one shape.
    """
    product = 0.5 * (gradient_square.double() + square.double() - space.double())
    return gradient_square.double() - product


def time_moments(slope: Tensor, square: Tensor) -> Tensor:
    """(t ∂_tU/d)² − ½(1 − ‖z‖²/d) t ∂_tU/d, from t ∂_tU/d and ‖z‖²/d of any one shape.

    Its mean is E[ŝ(ŝ − s)] for a slope ŝ = t ∂_tU/d where s is right: 0 where they agree, E e² where they
    differ by noise e, and negative where ŝ is too flat.
    """
    target = 0.5 * (1.0 - square.double())
    return slope.double().square() - target * slope.double()


POINTS = 13  # points of ln t in a window
WIDEST = 1.5  # half of a window, in nats of ln t, at most
MEAN_TOLERANCE = 0.05  # tolerance of a uniform rank's mean, ½
SPREAD_TOLERANCE = 0.03  # tolerance of its mean square around ½, 1/12; ranks that are all 0 or 1 have ¼


def window(noise_variance: float, dimension: int, t_range: tuple[float, float]) -> list[float]:
    """`POINTS` noise variances around a level, equally spaced in ln t: the support of the prior.

    White noise has a posterior of standard deviation √(2/d) in ln t, which sets the width.
    """
    half = min(WIDEST, 8.0 * math.sqrt(2.0 / dimension))
    low = max(math.log(t_range[0]), math.log(noise_variance) - half)
    high = min(math.log(t_range[1]), math.log(noise_variance) + half)
    return torch.linspace(low, high, POINTS, dtype=torch.float64).exp().tolist()


def rank(energies: Tensor, place: Tensor, uniform: Tensor) -> Tensor:
    """P(t < true) + u P(t = true), float64, shape (B,): uniform on [0, 1] if U is right.

    From U(y, t_k) in nats at each point (B, K), which point was true (B,), and uniform numbers u (B,) that
    break the tie of a discrete posterior.
    """
    posterior = (-energies.double()).softmax(dim=1)
    below = posterior.cumsum(dim=1) - posterior
    here = place[:, None]
    return (below.gather(1, here) + uniform[:, None].double() * posterior.gather(1, here))[:, 0]
