r"""Log Z: by the paper's protocol, and without images; and what is said of a model's log Z.

The paper's protocol is one network evaluation an image, at t = 0, on the pixel lattice. At t_max the density
is almost N(0, t_max I) whatever the data, so log Z = (d/2) ln(2πe t_max) − mean U(y, t_max), and
NLL = 8 + (mean U(x, 0) + log Z) / (d ln 2) bits/dim. Where the images' own Gaussian N(μ, Σ) is known, the
entropy of N(μ, Σ + t_max I) stands in for the noise's: 6e-5 bits/dim for photographs at t_max = 1e3, but much
where t_max is only ten times the images' variance. It is an estimate, neither a bound nor the likelihood of
8-bit images. Source: Guth et al. 2025, arXiv 2506.05310, section 3.

Without images: where t is far above the images' variances, their noisy density is nearly
N(μ, Σ + t I) = exp(−U_G), so that

    Z(t) = ∫ exp(−U(y, t)) dy = E_{y ~ N(μ, Σ + t I)} exp(U_G(y, t) − U(y, t))

is a mean of nearly equal weights, and one number: at smaller t the same mean must come out.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dualscore.annealing import start_from
from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.estimates import Estimate, mean
from dualscore.likelihood.mass import CONFIDENCE, Mass
from dualscore.likelihood.units import bits
from dualscore.noise import MEASURING, in_decibels, seeded_generator

NORMALIZER = -6  # second number of the random keys of draws from the Gaussian


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


def normalizer_variances(t_max: float) -> list[float]:
    """Noise variances at which log Z must come out the same: t_max, t_max/√10, t_max/10, in pixel²."""
    return [t_max, t_max / math.sqrt(10.0), t_max / 10.0]


@torch.no_grad()
def importance_weights(
    model: EnergyModel,
    prior: StationaryGaussian,
    variances: Sequence[float],
    draws: Sequence[int],
    *,
    seed: int = 0,
) -> Tensor:
    """Log weights U_G − U of draws from the Gaussian, float64, shape (n, T), whose means are Z(t).

    A draw depends on its number and the seed alone; `log_mean` makes log Z of a column.
    """
    columns = []
    for j, t in enumerate(variances):
        generators = [seeded_generator(prior.mean.device, MEASURING, NORMALIZER, seed, j, n) for n in draws]
        starts = [start_from(prior, t, 1, one) for one in generators]
        noisy, energy = (torch.cat(part) for part in zip(*starts, strict=True))
        columns.append(energy.double() - model(noisy, noisy.new_full((len(noisy),), t)).double())
    return torch.stack(columns, dim=1)


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
    return replace(
        mass,
        nats=mass.nats + nats,
        limit=mass.limit + nats,
        bits=mass.bits + bits(nats, dimension),
        limit_bits=mass.limit_bits + bits(nats, dimension),
    )


def measured_mass(found: Mass, log_normalizer: float, dimension: int) -> MeasuredMass:
    """The mass in nats and bits/dim that is left when an energy is normalized by the log Z reported of it."""
    nats, limit = found.at.value - log_normalizer, found.at.limit - log_normalizer
    return MeasuredMass(
        nats=nats,
        stderr=found.at.stderr,
        limit=limit,
        bits=bits(nats, dimension),
        limit_bits=bits(limit, dimension),
        effective_share=found.at.share,
        noise_variance=found.levels[-1],
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
        doubt = "" if self.stderr is None else f" ± {self.stderr:.2f}"
        mass = "mass not measured" if self.mass is None else str(self.mass)
        return f"log Z {self.value:.2f}{doubt} nats ({self.how}); {mass}"
