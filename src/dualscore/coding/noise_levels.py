"""The noise levels of a code, and the lattice that its latents lie on at each.

At level i the latents are integers k_i, y_i = μ + δ_i k_i in an orthonormal basis. Rounding to the lattice
adds δ²/12 to the noise, as uniform noise would, which the denoiser is told.
"""

import itertools
import math

from dualscore.errors import CodingError

BINS = 2.0
"""Lattice points in the standard deviation of the narrowest noise at a level."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Variances in pixel² that anybody's denoiser may know."""
MOST_LEVELS = 10_000


class NoiseLevels:
    """Noise variances t_0 < … < t_T, geometric, in pixel².

    Args:
        t0: where the decoder takes over.
        t1: where the prior takes over.
        steps: T, their number less one.
    """

    def __init__(self, t0: float, t1: float, steps: int) -> None:
        if not (SMALLEST <= t0 < t1 <= LARGEST and t1 > 1.001 * t0 and 1 <= steps <= MOST_LEVELS):
            raise CodingError(
                f"noise levels need {SMALLEST:g} ≤ t0 < t1 ≤ {LARGEST:g} and 1 to {MOST_LEVELS:,} steps, "
                f"got {t0}, {t1}, {steps}"
            )
        self.t0, self.t1, self.steps = t0, t1, steps
        ratio = (t1 / t0) ** (1.0 / steps)
        self.added = [t0 * ratio**i for i in range(steps + 1)]
        """Noise of each level before any rounding."""
        grown = [t0, *(b - a for a, b in itertools.pairwise(self.added))]
        narrowest = [min(grown[0], grown[1]), *grown[1:]]
        self.deltas = [math.sqrt(variance) / BINS for variance in narrowest]
        """Lattice constants δ_i."""
        rounding = [delta**2 / 12.0 for delta in self.deltas]
        self.grown = grown
        """Variance of the noise that leads to a level, before it is rounded there."""
        self.variances = [t + sum(rounding[: i + 1]) for i, t in enumerate(self.added)]
        """Noise of each level with all rounding so far."""
        self.gaps = [b - a for a, b in itertools.pairwise(self.variances)]
        """Noise between neighbouring levels, with the upper one's rounding."""
        self.rounding = rounding
        """Variance that rounding adds at each level. A lattice's bins of a normal density have it as well."""
