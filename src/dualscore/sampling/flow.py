"""Sampling along the probability-flow ODE: the path of `dualscore.likelihood.ode`, from noise to images."""

import torch
from torch import Tensor

from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.ode import WhitenedFlow, integrate


def flow(
    model: ScoreModel,
    prior: StationaryGaussian,
    count: int,
    *,
    t_min: float,
    t_max: float,
    tolerance: float,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Draw samples of p(y | t_min) by following the score from N(μ, Σ + t_max I).

    In the whitened coordinates the start is standard normal, whatever the spectrum. Returns images (count, C,
    H, W), and the evaluations of the model for each. The tolerance is the solver's, relative and absolute, in
    standard deviations. Source: Song et al. 2021, arXiv 2011.13456, section 4.3.
    """
    whitened = WhitenedFlow(prior)
    evaluations = 0

    def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal evaluations
        evaluations += 1
        (v,) = state
        y = whitened.image(v, t)
        return (whitened.velocity(v, model.gradients(y, t.expand(len(y)), time=False).image, t),)

    mean = prior.mean
    shape = (count, *prior.eigenvalues.shape)
    with torch.no_grad():
        start = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
        (v,) = integrate(velocity, (start,), t_max, t_min, tolerance)
        return whitened.image(v, mean.new_tensor(t_min)), evaluations
