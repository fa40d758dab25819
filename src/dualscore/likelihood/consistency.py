r"""Is an energy one and the same density at every noise level? Identities that any −log p must satisfy.

- I-MMSE: E U(y_b, b) − E U(y_a, a) = ½ ∫_a^b (d − d_eff(t)) d ln t, with d_eff = E‖x − x̂‖²/t from the
  model's own denoiser (Guo, Shamai, Verdú 2005). ∇_yU alone fixes the right side, ∂_tU
  the left one.
- The heat equation: 2 ∂_t U = ΔU − ‖∇_y U‖² at every y and t.
- Log Z is one number: at every large t the noisy images' entropy is known, between the noise's and that of
  their Gaussian.

Every gap is expressed in bits/dim of likelihood.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dualscore.energy import Gradients
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.units import Estimate, bits, mean
from dualscore.noise import in_decibels

TOLERANCE = 0.02
"""Bits/dim up to which two figures are called the same."""


@dataclass(frozen=True)
class Gap:
    """The difference of two figures that should be the same."""

    check: str
    """What is compared."""
    where: str
    """At which noise levels; empty where the check has none."""
    gap: Estimate
    """The difference, in bits/dim."""

    @property
    def consistent(self) -> bool:
        """Whether the difference is within the tolerance, give or take three standard errors.

        Three, because some twenty gaps are looked at: with two, one would be called wrong by chance.
        """
        return abs(self.gap.value) <= TOLERANCE + 3.0 * self.gap.stderr

    def __str__(self) -> str:
        """`energy rise, 30 to 15 dB: +0.031 ± 0.002 bits/dim`."""
        place = f", {self.where}" if self.where else ""
        return f"{self.check}{place}: {self.gap.value:+.3f} ± {self.gap.stderr:.3f} bits/dim"


def energy_rise_gaps(
    energy: Tensor, levels: Sequence[float], variances: Tensor, space: Tensor, width: float, dimension: int
) -> list[Gap]:
    """The energy's rise between neighbouring noise levels, less the I-MMSE integral of the same images.

    Args:
        energy: U(y_t, t) in nats at each level, shape (n, L).
        levels: rising noise variances t_1 < … < t_L, in pixel².
        variances: where the denoiser was measured, one t a stratum of ln t, in pixel², shape (n, S).
        space: the space losses d_eff/d there, shape (n, S).
        width: of a stratum, in nats of ln t; the strata cover the levels.
        dimension: d.

    Returns:
        A gap for each pair of neighbours.
    """
    integrand = 0.5 * dimension * width * (1.0 - space.double())
    gaps = []
    for j, (low, high) in enumerate(pairwise(levels)):
        # Draws of strata that lie partly inside count only inside: unbiased, whatever the levels are.
        expected = torch.where((variances >= low) & (variances < high), integrand, 0.0).sum(dim=1)
        rise = energy[:, j + 1].double() - energy[:, j].double()
        where = f"{in_decibels(low)} to {in_decibels(high)} dB"
        gaps.append(Gap("energy rise", where, bits(mean(rise - expected), dimension)))
    return gaps


def first_rise_gap(
    clean_energy: Tensor,
    energy: Tensor,
    level: float,
    variances: Tensor,
    space: Tensor,
    width: float,
    dimension: int,
    t_min: float,
    jumps: bool,
) -> Gap:
    """The energy's rise from t = 0 to the lowest noise level, less what I-MMSE says.

    Below the first stratum d − d_eff is proportional to t^p, so that its integral over ln t is 1/p of its
    value at t_min: that at the first stratum's t, scaled. Of a smooth density p is 1. Of one with jumps, as
    dequantized images have at the edges of their cells, only what lies within √t of a jump counts: p is ½.

    Args:
        clean_energy: U(x, 0) in nats, shape (n,).
        energy: U(y_t, t) at the lowest level, shape (n,).
        level: that noise variance, in pixel².
        variances: as in `energy_rise_gaps`.
        space: as there.
        width: as there.
        dimension: d.
        t_min: where the first stratum begins, in pixel².
        jumps: whether the images' density has jumps.

    Returns:
        The gap.
    """
    integrand = 0.5 * dimension * (1.0 - space.double())
    power = 0.5 if jumps else 1.0
    below = integrand[:, 0] * (t_min / variances[:, 0].double()) ** power / power
    expected = torch.where(variances < level, width * integrand, 0.0).sum(dim=1) + below
    rise = energy.double() - clean_energy.double() - expected
    return Gap("energy rise", f"no noise to {in_decibels(level)} dB", bits(mean(rise), dimension))


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


def heat_gaps(residual: Tensor, levels: Sequence[float]) -> list[Gap]:
    """The heat equation's mean residual at each level, as the likelihood it would cost over its surroundings.

    Args:
        residual: what `heat_residual` found, shape (n, L).
        levels: rising noise variances, in pixel².

    Returns:
        A gap for each level: ½ residual · (nats of ln t nearer to this level than to its neighbours) / ln 2.
    """
    gaps = []
    logs = [math.log(t) for t in levels]
    for j, t in enumerate(levels):
        low, high = logs[max(0, j - 1)], logs[min(len(logs) - 1, j + 1)]
        width = 0.5 * (high - low) if len(levels) > 1 else 1.0
        cost = mean(residual[:, j]) * (0.5 * width / math.log(2.0))
        gaps.append(Gap("heat equation", f"{in_decibels(t)} dB", cost))
    return gaps


def entropy_doubt(prior: StationaryGaussian, noise_variance: float) -> float:
    """How uncertain noisy images' entropy is, in nats: it lies between the noise's and their Gaussian's."""
    return float(0.5 * torch.log1p(prior.eigenvalues.double() / noise_variance).sum())


def log_normalizers(
    energy: Tensor, noise_square: Tensor, entropies: Sequence[float], dimension: int
) -> Tensor:
    """Log Z of each image at several large noise variances, in nats; its mean estimates log Z.

    Args:
        energy: U(y_t, t) in nats, shape (n, T).
        noise_square: ‖z‖² of the noise, the same for all variances of an image, shape (n,).
        entropies: of the noisy images' Gaussian at each variance, nearly their own at large t, in nats.
        dimension: d.

    Returns:
        Nats, shape (n, T).
    """
    entropy = torch.tensor(entropies, dtype=torch.float64)
    return entropy - 0.5 * dimension - (energy.double() - 0.5 * noise_square.double()[:, None])


def normalizer_gaps(log_z: Tensor, variances: Sequence[float], dimension: int) -> list[Gap]:
    """How log Z drifts from the largest noise variance, the last one, to the smaller ones.

    Args:
        log_z: what `log_normalizers` found, shape (n, T).
        variances: t, in pixel², rising.
        dimension: d.

    Returns:
        A gap for each variance but the last.
    """
    return [
        Gap(
            "log Z",
            f"{in_decibels(t)} against {in_decibels(variances[-1])} dB",
            bits(mean(log_z[:, j] - log_z[:, -1]), dimension),
        )
        for j, t in enumerate(variances[:-1])
    ]


def verdict(gaps: Sequence[Gap], listed: int = 4) -> str:
    """One line in words: consistent or not, and where.

    Args:
        gaps: everything that was compared.
        listed: how many violations are spelt out, the largest first.

    Returns:
        The line.
    """
    if not gaps:
        return "not checked"
    by_size = sorted(gaps, key=lambda gap: -abs(gap.gap.value))
    broken = [gap for gap in by_size if not gap.consistent]
    if not broken:
        return f"consistent within {TOLERANCE} bits/dim and three standard errors; largest gap: {by_size[0]}"
    more = f"; and {len(broken) - listed} more" if len(broken) > listed else ""
    return "NOT consistent: " + "; ".join(map(str, broken[:listed])) + more
