r"""Log Z by the paper's protocol, the mean of weights, and what is said of a model's log Z.

The paper's protocol is one network evaluation an image, at t = 0, on the pixel lattice. At t_max the density
is almost N(0, t_max I) whatever the data, so log Z = (d/2) ln(2πe t_max) − mean U(y, t_max), and
NLL = 8 + (mean U(x, 0) + log Z) / (d ln 2) bits/dim. Where the images' own Gaussian N(μ, Σ) is known, the
entropy of N(μ, Σ + t_max I) stands in for the noise's: 6e-5 bits/dim for photographs at t_max = 1e3, but much
where t_max is only ten times the images' variance. It is an estimate, neither a bound nor the likelihood of
8-bit images. Source: Guth et al. 2025, arXiv 2506.05310, section 3.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from dualscore.energy import BY_FORM
from dualscore.likelihood.estimates import Estimate, mean
from dualscore.likelihood.units import bits
from dualscore.noise import in_decibels

CONFIDENCE = 0.95
SLACK = math.log(1.0 / (1.0 - CONFIDENCE))  # ln 20: what Markov's inequality takes off, in nats


def log_normalizer(noisy_energy: Tensor, noise_square: Tensor, dimension: int, entropy: float) -> Estimate:
    """Log Z in nats: what must be added to U to normalize it.

    The mean of U(y, t) is taken around ½‖z‖², whose own mean is d/2: on average the same figure, with the
    noise's fluctuations gone, so that a few dozen images fix it.

    Args:
        noisy_energy: U(x + √t z, t) in nats, shape (n,).
        noise_square: ‖z‖² of each image, shape (n,).
        dimension: d.
        entropy: of the noisy images in nats: `noise_entropy(d, t)`, or `StationaryGaussian.entropy(t)`.

    Returns:
        Log Z and its standard error.

    Raises:
        ValueError: if there are fewer than two images or an energy is not finite.
    """
    around = mean(noisy_energy.double() - 0.5 * noise_square.double())
    return Estimate(entropy - 0.5 * dimension - around.value, around.stderr)


def paper_bits_per_dim(clean_energy: Tensor, log_z: Estimate, dimension: int) -> Estimate:
    """The paper's bits/dim, 8 + (mean U(x, 0) + log Z) / (d ln 2), of U(x, 0) in nats, shape (n,).

    A ValueError refuses fewer than two images, or energies that are not finite.
    """
    # log Z is taken at noise that drowns the images, so the two errors are independent.
    figure = bits(mean(clean_energy) + log_z, dimension)
    return Estimate(8.0 + figure.value, figure.stderr)


@dataclass(frozen=True)
class LogMean:
    """The log of the mean of positive weights: an estimate of a log normalizer, in nats."""

    value: float  # log Ẑ
    stderr: float
    """Its standard error by the delta method, sd(w) / (√n mean w); unreliable where few weights count."""
    effective: float  # effective number of weights, (Σw)²/Σw²
    count: int  # number of weights, n

    @property
    def share(self) -> float:
        """The effective part of the weights, between 1/n and 1."""
        return self.effective / self.count

    @property
    def limit(self) -> float:
        """Below log Z with 95 % confidence: the Markov limit, log Ẑ − ln 20."""
        return self.value - SLACK

    @property
    def estimate(self) -> Estimate:
        """The value with its standard error."""
        return Estimate(self.value, self.stderr)

    def __str__(self) -> str:
        """`32.91 ± 0.71 nats, ≥ 29.91 (95 %), 2.1 of 128 weights effective`."""
        return (
            f"{self.value:.2f} ± {self.stderr:.2f} nats, ≥ {self.limit:.2f} (95 %), "
            f"{self.effective:.1f} of {self.count} weights effective"
        )


def effective_samples(log_weight: Tensor) -> float:
    """Effective number of weighted samples, (Σw)²/Σw², from the logs of their weights, shape (B,)."""
    return float((2.0 * log_weight.logsumexp(0) - (2.0 * log_weight).logsumexp(0)).exp())


def log_mean(log_weight: Tensor) -> LogMean:
    """The log of the mean of independent weights given by their logs, (n,), n ≥ 2, and how sure it is.

    A ValueError refuses fewer than two, and what is not a number or infinite (−∞, no weight, may be).
    """
    log_weight = log_weight.double()
    count = log_weight.numel()
    if count < 2:
        raise ValueError(f"a standard error needs at least 2 weights, got {count}")
    if wrong := int((log_weight.isnan() | (log_weight == math.inf)).sum()):
        raise ValueError(f"{wrong} of {count} weights are not finite: the energy is wrong where chains went")
    effective = effective_samples(log_weight)
    variance = max(0.0, count / effective - 1.0) / (count - 1)  # of the mean, relative to its square
    return LogMean(float(log_weight.logsumexp(0)) - math.log(count), math.sqrt(variance), effective, count)


@dataclass(frozen=True)
class MeasuredMass:
    """The mass of a normalized energy at one noise level, and the least it is with 95 % confidence."""

    nats: float  # log ∫ exp(−U(y, t)) dy − log Z: 0 where the reported log Z is right
    stderr: float
    limit: float  # below the true one with 95 % confidence, in nats
    bits: float  # nats as bits/dim: by so much the density is worse than what the energy says
    limit_bits: float
    effective_share: float  # the chains' effective share
    noise_variance: float  # t in pixel²

    def __str__(self) -> str:
        """`mass at 58.9 dB e^31.4, at least e^28.4 (95 %) = 0.160 bits/dim; 2 % of the chains effective`."""
        return (
            f"mass at {in_decibels(self.noise_variance)} dB e^{self.nats:.1f}, at least e^{self.limit:.1f} "
            f"({CONFIDENCE:.0%}) = {self.limit_bits:.3f} bits/dim; "
            f"{self.effective_share:.0%} of the chains effective"
        )


def moved(mass: MeasuredMass, nats: float, dimension: int) -> MeasuredMass:
    """The same mass where the reported log Z is lower by some nats than the one that it was taken with."""
    more = bits(nats, dimension)
    return replace(
        mass,
        nats=mass.nats + nats,
        limit=mass.limit + nats,
        bits=mass.bits + more,
        limit_bits=mass.limit_bits + more,
    )


@dataclass(frozen=True)
class Normalization:
    """A model's log Z and how well it is known, in plain values."""

    value: float  # log Z in nats, as reported: the density is exp(−U − log Z)
    stderr: float | None  # its standard error in nats; None where it is not known
    how: str  # how it was estimated, for people
    mass: MeasuredMass | None = None
    """The density's integral at a small noise level; None where nobody measured it."""

    @property
    def limit(self) -> float | None:
        """Lower limit of the mass's log in nats, with 95 % confidence; None where nobody measured it."""
        return None if self.mass is None else self.mass.limit

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `from_plain` reads it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Normalization":
        """The object that `plain` came from; TypeError if a value is missing or unknown."""
        mass = plain.get("mass")
        return cls(**{**plain, "mass": None if mass is None else MeasuredMass(**mass)})

    def __str__(self) -> str:
        """`log Z 0.62 ± 0.07 nats (how); mass at 58.9 dB …`, in one line."""
        if self.how == BY_FORM:
            return f"log Z 0, mass one, {BY_FORM}"
        doubt = "" if self.stderr is None else f" ± {self.stderr:.2f}"
        mass = "mass not measured" if self.mass is None else str(self.mass)
        return f"log Z {self.value:.2f}{doubt} nats ({self.how}); {mass}"
