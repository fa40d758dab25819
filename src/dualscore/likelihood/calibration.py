r"""Is an energy right as a likelihood of the noise level?

−U(y, ·) is the log-likelihood of ln t given a noisy image y. If t is drawn from a prior, y = x + √t z, and
p(y | t) ∝ exp(−U(y, t)) with one constant for all t, then the rank of t in its posterior is uniform on [0, 1]
over images x: lower moments tell an energy that is tilted in t, the spread one that is tilted one way on some
images and another way on others. The prior is uniform on a few points of ln t around a level.
Source: Cook, Gelman, Rubin 2006, Validation of software for Bayesian models using posterior quantiles.
"""

import math

import torch
from torch import Tensor

POINTS = 13
"""Points of ln t in a window."""
WIDEST = 1.5
"""Half of a window, in nats of ln t, at most."""
MEAN_TOLERANCE = 0.05
"""Of a uniform rank's mean, ½."""
SPREAD_TOLERANCE = 0.03
"""Of its mean square around ½, 1/12; ranks that are all 0 or 1 have ¼."""


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
