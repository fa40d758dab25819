r"""The likelihood of the probability-flow ODE, from a model's score alone.

With dy/dt = ½ ∇_y U the noisy density is carried along: −log p(y_{t_min}) = −log p(y_{t_max}) − ½ ∫ ΔU dt,
where p(· | t_max) is the Gaussian prior. Integrated in s = ln t: dy/ds = ½ t ∇_y U, dE/ds = −½ t ΔU.
Source: Song et al. 2021, Score-based generative modeling through SDEs, arXiv 2011.13456, section 4.3.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from dualscore.energy import Gradients, ScoreModel
from dualscore.gaussian import StationaryGaussian


class OdeEnergy(NamedTuple):
    """What the flow found."""

    energy: Tensor
    """−log p in nats, normalised, shape (B,)."""
    evaluations: int
    """Network evaluations an image; each with two derivatives."""


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent signs ±1, for Hutchinson's trace.

    Turned by `StationaryGaussian.synthesize` they are signs in the basis of the images' spectrum. Any
    orthonormal basis will do; in that one the Hessian is nearly diagonal, and the trace nearly free of noise.

    Args:
        shape: of the result.
        generator: on the CPU.

    Returns:
        Numbers v with E v vᵀ = I, float32.
    """
    return 2.0 * torch.randint(0, 2, tuple(shape), generator=generator).float() - 1.0


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
        tolerance: relative and absolute, of the adaptive solver (Dormand–Prince 5).

    Returns:
        The normalised energies and the number of evaluations.
    """
    evaluations = 0

    def flow(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        y = state[0]
        t = s.exp().to(y.dtype).expand(len(y))
        found, trace = laplacian(model, y, t, probe)
        half = 0.5 * t[0]
        return half * found.image, -half * trace

    span = torch.tensor([math.log(t_min), math.log(t_max)], dtype=torch.float64, device=images.device)
    start = (images, images.new_zeros(len(images)))
    with torch.no_grad():
        y, change = (path[-1] for path in odeint(flow, start, span, rtol=tolerance, atol=tolerance))
        end = prior(y, torch.full((len(y),), t_max, dtype=y.dtype, device=y.device)).energy
    return OdeEnergy(end.double() + change.double(), evaluations)
