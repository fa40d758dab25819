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
import traceback
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from dualscore.energy import Gradients, ScoreModel
from dualscore.errors import FlowError
from dualscore.gaussian import StationaryGaussian

FIRST_STEP, LARGEST_STEP = 0.1, 2.0
"""The solver's steps, in nats of ln t. At t_min nothing moves: left to itself it would begin with steps that
single precision cannot hold, and grow them until they leave the range of noise variances."""
MOST_EVALUATIONS = 5_000
"""Where the solver gives up: about 50 are usual, and 400 at a tolerance of 1e-8."""


class OdeEnergy(NamedTuple):
    """The flow's result."""

    energy: Tensor  # −log p in nats, normalized, shape (B,)
    evaluations: int  # network evaluations an image; each with two derivatives


def laplacian(
    model: ScoreModel, noisy: Tensor, noise_variance: Tensor, probe: Tensor, *, time: bool = False
) -> tuple[Gradients, Tensor]:
    """∇_y U (B, C, H, W) without a graph, and vᵀ(∇²U)v, an unbiased estimate of ΔU (B,).

    At y (B, C, H, W) and t (B,), with a probe v of y's shape, E v vᵀ = I; with ∂_t U if `time`.
    """
    with torch.enable_grad():
        y = noisy.detach().requires_grad_()
        found = model.gradients(y, noise_variance, time=time)
        (curvature,) = torch.autograd.grad((found.image * probe).sum(), y)
    plain = Gradients(found.image.detach(), *(part if part is None else part.detach() for part in found[1:]))
    return plain, (curvature * probe).sum(dim=(1, 2, 3))


class WhitenedFlow:
    """The flow in whitened coordinates v = (Σ + t)^(−1/2) (y − μ), in the eigenbasis of the images' Σ."""

    def __init__(self, prior: StationaryGaussian) -> None:
        self.prior = prior
        self.spectrum, self.mean = prior.eigenvalues, prior.mean[:, None, None]

    def coordinates(self, images: Tensor, t: Tensor | float) -> Tensor:
        """Whitened coordinates v of images y at noise variance t, a scalar; shape (B, C, H, W)."""
        return self.prior.analyze(images - self.mean) * (self.spectrum + t).rsqrt()

    def image(self, v: Tensor, t: Tensor) -> Tensor:
        """Images y of coordinates v at noise variance t, a scalar; shape (B, C, H, W)."""
        return self.prior.synthesize(v * (self.spectrum + t).sqrt()) + self.mean

    def velocity(self, v: Tensor, gradient: Tensor, t: Tensor) -> Tensor:
        """dv/d ln t where ∇_y U is `gradient`; shape (B, C, H, W)."""
        total = self.spectrum + t
        return 0.5 * t * (self.prior.analyze(gradient) * total.rsqrt() - v / total)


State = tuple[Tensor, ...]


def integrate(
    velocity: Callable[[Tensor, State], State], start: State, t_from: float, t_to: float, tolerance: float
) -> tuple[State, int]:
    """Follow a flow in ln t with an adaptive solver (Dormand–Prince 5), from t_from > 0 to t_to, in pixel².

    The velocity gives d state/d ln t at (t, state), where t is a scalar of the first part's type; the
    tolerance is relative and absolute. Returns the state at t_to, and how often the velocity was asked for.
    A FlowError says that the flow cannot be followed so closely, or not in MOST_EVALUATIONS.
    """
    like, evaluations = start[0], 0

    def flow(s: Tensor, state: State) -> State:
        nonlocal evaluations
        evaluations += 1
        if evaluations > MOST_EVALUATIONS:
            raise _lost(f"after {MOST_EVALUATIONS:,} evaluations it is at t = {float(s.exp()):.3g} pixel²")
        return velocity(s.exp().to(like.dtype), state)

    ends = torch.tensor([math.log(t_from), math.log(t_to)], dtype=torch.float64, device=like.device)
    steps = {"first_step": FIRST_STEP, "max_step": LARGEST_STEP}
    try:
        path = odeint(flow, start, ends, rtol=tolerance, atol=tolerance, options=steps)
    except AssertionError as error:
        if not _of_solver(error):
            raise
        raise _lost("its steps vanish, or its state is not finite") from error
    return tuple(part[-1] for part in path), evaluations


def _of_solver(error: AssertionError) -> bool:
    """Whether torchdiffeq asserted it, and not the model that it asks."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith("torchdiffeq.")


def _lost(how: str) -> FlowError:
    return FlowError(
        f"the probability flow cannot be followed: {how}; the model's score is wrong somewhere, or the "
        "tolerance too small for its precision"
    )


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
        images: images with a density (dequantized), shape (B, C, H, W).
        prior: Gaussian of the clean images, whose noisy version is the density at t_max.
        probe: v with E v vᵀ = I, for the trace, of the images' shape.
        t_min: where the flow begins, in pixel²; far below the images' smallest variances.
        t_max: where it ends, far above their largest.
        tolerance: relative and absolute, of the adaptive solver (Dormand–Prince 5), in standard deviations
            and nats; relative to what the energy changed by, but LARGEST_STEP is usually the closer limit.

    Returns:
        The normalized energies and the number of evaluations.

    Raises:
        FlowError: if the flow cannot be followed to its end.
    """
    whitened = WhitenedFlow(prior)

    def flow(t: Tensor, state: State) -> State:
        y = whitened.image(state[0], t)
        found, trace = laplacian(model, y, t.expand(len(y)), probe)
        constant = (whitened.spectrum + t).reciprocal().sum()
        return whitened.velocity(state[0], found.image, t), -0.5 * t * (trace - constant)

    with torch.no_grad():
        start = whitened.coordinates(images, t_min), images.new_zeros(len(images))
        state, evaluations = integrate(flow, start, t_min, t_max, tolerance)
        v, change = (part.double() for part in state)
        log_determinant = torch.log(2.0 * math.pi * (prior.eigenvalues.double() + t_min)).sum()
        energy = 0.5 * (v.square().sum(dim=(1, 2, 3)) + log_determinant) + change
    return OdeEnergy(energy, evaluations)
