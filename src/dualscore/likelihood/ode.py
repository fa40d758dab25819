r"""The likelihood of the probability-flow ODE, from a model's score alone.

With dy/dt = ½ ∇_y U the noisy density is carried along: −log p(y_{t_min}) = −log p(y_{t_max}) − ½ ∫ ΔU dt,
where p(· | t_max) is the Gaussian N(μ, Σ + t_max I) of the noisy images. Integrated in s = ln t and in
whitened coordinates v = (Σ + t)^(−1/2) (y − μ), in which that Gaussian stands still:

    dv/ds = ½ t ((Σ + t)^(−1/2) ∇_y U − (Σ + t)^(−1) v),    dE/ds = −½ t (ΔU − tr (Σ + t)^(−1)),

and −log p(y_{t_min}) = ½ ‖v(t_max)‖² + ½ ln det 2π(Σ + t_min) + E. The solver's tolerance is then in units of
what varies, at every noise level.
Source: Song et al. 2021, Score-based generative modeling through SDEs, arXiv 2011.13456, section 4.3.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from dualscore.energy import Gradients, ScoreModel
from dualscore.gaussian import StationaryGaussian

FIRST_STEP, LARGEST_STEP = 0.1, 2.0
"""Of the solver, in nats of ln t. At t_min nothing moves: left to itself it would begin with steps that
single precision cannot hold, and grow them until they leave the range of noise variances."""


class OdeEnergy(NamedTuple):
    """What the flow found."""

    energy: Tensor
    """−log p in nats, normalised, shape (B,)."""
    evaluations: int
    """Network evaluations an image; each with two derivatives."""


def laplacian(
    model: ScoreModel, noisy: Tensor, noise_variance: Tensor, probe: Tensor, *, time: bool = False
) -> tuple[Gradients, Tensor]:
    """∇_y U and an unbiased estimate vᵀ(∇²U)v of ΔU.

    Args:
        model: an energy or a denoiser.
        noisy: y, shape (B, C, H, W).
        noise_variance: t in pixel², shape (B,).
        probe: v with E v vᵀ = I, of y's shape.
        time: whether ∂_t U is wanted too.

    Returns:
        The gradients without a graph, and ΔU, shape (B,).
    """
    with torch.enable_grad():
        y = noisy.detach().requires_grad_()
        found = model.gradients(y, noise_variance, time=time)
        (curvature,) = torch.autograd.grad((found.image * probe).sum(), y)
    plain = Gradients(found.image.detach(), *(part if part is None else part.detach() for part in found[1:]))
    return plain, (curvature * probe).sum(dim=(1, 2, 3))


def ode_energy(
    model: ScoreModel,
    images: Tensor,
    prior: StationaryGaussian,
    probe: Tensor,
    *,
    t_min: float,
    t_max: float,
    tolerance: float,
) -> OdeEnergy:
    """−log p of images by the probability-flow ODE.

    Args:
        model: its score drives the flow.
        images: images with a density (dequantised), shape (B, C, H, W).
        prior: Gaussian of the clean images, whose noisy version is the density at t_max.
        probe: v with E v vᵀ = I, for the trace, of the images' shape.
        t_min: where the flow begins, in pixel²; far below the images' smallest variances.
        t_max: where it ends, far above their largest.
        tolerance: relative and absolute, of the adaptive solver (Dormand–Prince 5), in standard deviations.

    Returns:
        The normalised energies and the number of evaluations.
    """
    evaluations = 0
    spectrum, mean = prior.eigenvalues, prior.mean[:, None, None]

    def flow(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        v, t = state[0], s.exp().to(state[0].dtype)
        total = spectrum + t
        y = prior.synthesize(v * total.sqrt()) + mean
        found, trace = laplacian(model, y, t.expand(len(y)), probe)
        score = prior.analyze(found.image) * total.rsqrt()
        return 0.5 * t * (score - v / total), -0.5 * t * (trace - total.reciprocal().sum())

    span = torch.tensor([math.log(t_min), math.log(t_max)], dtype=torch.float64, device=images.device)
    with torch.no_grad():
        start = prior.analyze(images - mean) * (spectrum + t_min).rsqrt()
        states = odeint(
            flow,
            (start, images.new_zeros(len(images))),
            span,
            rtol=tolerance,
            atol=tolerance,
            options={"first_step": FIRST_STEP, "max_step": LARGEST_STEP},
        )
        v, change = (path[-1].double() for path in states)
        log_determinant = torch.log(2.0 * math.pi * (spectrum.double() + t_min)).sum()
        energy = 0.5 * (v.square().sum(dim=(1, 2, 3)) + log_determinant) + change
    return OdeEnergy(energy, evaluations)
