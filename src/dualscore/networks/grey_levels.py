r"""Grey levels in the density of dequantized images at low noise: which one a pixel had, how likely each is.

Images on K levels, dequantized by uniform noise of one step, have a density that is constant in each level's
cell; noise of variance t softens the cells' edges. So a mixture's density at small t is better made of the
probabilities P_k that it gives the cells: p(y | t) = Σ_k P_k (cell_k ∗ N(0, t))(y). Without noise that is
(K − 1) P_k everywhere in cell k, so that U tells the code length of the 8-bit image.
Source: Theis, van den Oord, Bethge 2016, arXiv 1511.01844, for dequantization; Salimans et al. 2017, arXiv
1701.05517, for the cells of a mixture, the outermost with all that lies beyond.
"""

import math

import torch
from torch import Tensor

SHARP = 0.4
"""Standard deviation of the noise, in steps, at which edges of cells count little any more."""
SHARP_BEFORE = 0.2  # of weights that were saved before they said it
REACH = 2
"""Cells to either side of a number's own that noise of that much can have brought it from."""
NEVER_ALONE = 1e-4
"""Share of the mixture itself at any noise, which has tails where cells have none in single precision."""
NO_NOISE = 1e-3  # in steps: so that a square root has a derivative at t = 0
_LEAST = 1e-12  # density below which single precision knows no more than that it is small


def deviation(noise_variance: Tensor, levels: int) -> Tensor:
    """√t in steps of the grey levels, shape (B,), from t in pixel², (B,)."""
    step = 1.0 / (levels - 1)
    return (noise_variance + (NO_NOISE * step) ** 2).sqrt() / step


def log_sharpness(sigma: Tensor, sharp: Tensor | float = SHARP) -> Tensor:
    """Log of what is 1 where noise leaves the cells' edges, 0 where it hides them, (B,), from √t in steps."""
    return -((sigma.clamp(max=10.0) / sharp) ** 8)


def likely_levels(noisy: Tensor, noise_variance: Tensor, levels: int) -> Tensor:
    """The mean of the level that a pixel had, if all were as likely: a staircase, softened by the noise.

    It fades to the pixel itself as noise hides the steps. From y (B, C, H, W) and t (B,), in pixels.
    """
    sigma = deviation(noise_variance, levels)[:, None, None, None]
    place = noisy * (levels - 1) + 0.5
    lower = place.floor().detach()
    within, width = place - lower, math.sqrt(2.0) * sigma
    # Of the edges around, those of the cells beside too: they are in reach before the stairs have faded.
    below = sum(0.5 + 0.5 * torch.erf((within - edge) / width) for edge in (-1.0, 0.0, 1.0, 2.0))
    stairs = lower - 2.0 + below
    share = log_sharpness(sigma).exp()
    return share * stairs / (levels - 1) + (1.0 - share) * noisy


def cell_density(
    own: Tensor, sigma: Tensor, log_weights: Tensor, means: Tensor, deviations: Tensor, levels: int
) -> Tensor:
    """Log Σ_k P_k (cell_k ∗ N(0, t))(y), the sum over the nearest cells, shape (B, P).

    Args:
        own: y, shape (B, P), in pixels.
        sigma: √t in steps, shape (B,), at which the other cells are out of reach: not far above `SHARP`.
        log_weights: of a mixture of Gaussians, normalized, shape (B, P, components).
        means: theirs, in pixels.
        deviations: theirs, in pixels, > 0.
        levels: K.

    Returns:
        In nats, for densities a pixel; a large negative number where nothing is in reach.
    """
    place = (own * (levels - 1) + 0.5)[..., None]
    edges = place.floor().detach() + torch.arange(-REACH, REACH + 2.0, dtype=own.dtype, device=own.device)
    # A cell's share of a component is a difference of two tails, on the side where they are small.
    above = (means > own[..., None]).to(own.dtype).detach()[..., None]
    side = 1.0 - 2.0 * above
    beyond = ((edges[..., None, :] - 0.5) / (levels - 1) - means[..., None]) / deviations[..., None]
    tails = 0.5 * torch.erfc(math.sqrt(0.5) * side * beyond)
    tails = torch.where(edges[..., None, :] <= 0, 1.0 - above, tails)
    tails = torch.where(edges[..., None, :] >= levels, above, tails)
    share = (log_weights.exp()[..., None] * -side * tails.diff(dim=3)).sum(dim=2)
    # So is what the noise brought from a cell to y, but for its own.
    tails = 0.5 * torch.erfc((place - edges).abs() / (math.sqrt(2.0) * sigma[:, None, None]))
    below, over = tails[..., : REACH + 1], tails[..., REACH + 1 :]
    reached = torch.cat([below.diff(dim=2), 1.0 - below[..., -1:] - over[..., :1], -over.diff(dim=2)], dim=2)
    density = (levels - 1) * (share * reached).sum(dim=2)
    known = density > _LEAST
    return torch.where(known, torch.where(known, density, 1.0).log(), -1e4)
