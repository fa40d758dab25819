r"""Figures with their errors: means over images that are not independent where photographs share them.

Crops of one photograph resemble each other, so the error of a mean is that of the photographs. With w_g the
share of the images that photograph g has, m_g their mean and m the mean of all,

    stderr² = Σ_g w_g² (m_g − m)² / (1 − w_g),

which is unbiased where images are independent, and s²/G where photographs have equally many images. An
interval takes Student's t with G − 1 degrees of freedom.
Source: Bell and McCaffrey 2002, Bias reduction in standard errors for linear regression with multi-stage
samples, Survey Methodology 28(2): their estimator for a mean.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error, in the same unit."""

    value: float
    stderr: float
    """Over photographs (or images, where each is its own or nobody knows); NaN where there is one only."""
    groups: int = field(default=0, compare=False)
    """G, how many of them there are; 0 where the error is known otherwise."""

    def __str__(self) -> str:
        """`3.914 ± 0.015`; `3.914 (no error: one photograph)`."""
        if math.isnan(self.stderr):
            return f"{self.value:.3f} (no error: one photograph)"
        return f"{self.value:.3f} ± {self.stderr:.3f}"

    def __add__(self, other: "Estimate") -> "Estimate":
        """The sum of two independent figures."""
        return Estimate(self.value + other.value, *self._joined(other))

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent figures."""
        return Estimate(self.value - other.value, *self._joined(other))

    def __mul__(self, factor: float) -> "Estimate":
        """The figure in another unit."""
        return Estimate(self.value * factor, self.stderr * abs(factor), self.groups)

    def _joined(self, other: "Estimate") -> tuple[float, int]:
        counts = [e.groups for e in (self, other) if e.groups and e.stderr != 0.0]
        return math.hypot(self.stderr, other.stderr), min(counts, default=max(self.groups, other.groups))

    def quantile(self, deviations: float) -> float:
        """Student's t quantile that covers as much as this many standard deviations of a normal law."""
        if not self.groups:
            return deviations
        if self.groups < 2:
            return math.inf
        from scipy.special import ndtr, stdtrit  # not needed to give a figure

        return float(stdtrit(self.groups - 1, ndtr(deviations)))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval that holds the truth with this probability, by Student's t; infinite for G = 1."""
        central = torch.erfinv(torch.tensor(confidence, dtype=torch.float64))
        half = self.quantile(math.sqrt(2.0) * float(central))
        reach = math.inf if math.isinf(half) else half * self.stderr
        return self.value - reach, self.value + reach


def mean(values: Tensor, groups: Tensor | None = None) -> Estimate:
    """Mean over images (n,), n ≥ 2, with its standard error over photographs; NaN where there is one.

    `groups` (n,), any integers, say which photograph each image is of; None where each is its own, or nobody
    knows. A ValueError refuses fewer than two values, or some that are not finite: never averaged away.
    """
    values = values.double()
    if values.numel() < 2:
        raise ValueError(f"a standard error needs at least 2 images, got {values.numel()}")
    if wrong := int((~values.isfinite()).sum()):
        raise ValueError(f"{wrong} of {values.numel()} values are not finite")
    if groups is None:
        return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)), len(values))
    _, place, counts = torch.unique(groups.to(values.device), return_inverse=True, return_counts=True)
    share = counts.double() / len(values)
    center = values.mean()
    sums = torch.zeros_like(share).index_add_(0, place, values - center)
    if len(counts) == 1:
        return Estimate(float(center), math.nan, 1)
    variance = ((sums / len(values)).square() / (1.0 - share)).sum()
    return Estimate(float(center), float(variance.sqrt()), len(counts))
