r"""The paper's protocol: one network evaluation an image, at t = 0, on the pixel lattice.

At t_max the density is almost N(0, t_max I) whatever the data, so
log Z = (d/2) ln(2πe t_max) − mean U(y, t_max) and NLL = 8 + (mean U(x, 0) + log Z) / (d ln 2) bits/dim.
Where the images' own Gaussian N(μ, Σ) is known, the entropy of N(μ, Σ + t_max I) stands in for the noise's:
6e-5 bits/dim for photographs at t_max = 1e3, but much where t_max is only ten times the images' variance.
It is an estimate, neither a bound nor the likelihood of 8-bit images.
Source: Guth et al. 2025, arXiv 2506.05310, section 3.
"""

from torch import Tensor

from dualscore.likelihood.estimates import Estimate, mean
from dualscore.likelihood.units import bits


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
    return log_normalizer_of(mean(noisy_energy.double() - 0.5 * noise_square.double()), dimension, entropy)


def log_normalizer_of(around: Estimate, dimension: int, entropy: float) -> Estimate:
    """Log Z of a mean that was taken already.

    Args:
        around: the mean of U(y, t) − ½‖z‖², in nats.
        dimension: d.
        entropy: as in `log_normalizer`.

    Returns:
        Log Z and its standard error, in nats.
    """
    return Estimate(entropy - 0.5 * dimension - around.value, around.stderr)


def paper_bits_per_dim(clean_energy: Tensor, log_z: Estimate, dimension: int) -> Estimate:
    """The paper's bits/dim, 8 + (mean U(x, 0) + log Z) / (d ln 2), of U(x, 0) in nats, shape (n,).

    A ValueError refuses fewer than two images, or energies that are not finite.
    """
    return paper_bits_per_dim_of(mean(clean_energy), log_z, dimension)


def paper_bits_per_dim_of(energy: Estimate, log_z: Estimate, dimension: int) -> Estimate:
    """The paper's bits/dim of a mean that was taken already.

    Args:
        energy: the mean of U(x, 0), in nats.
        log_z: as in `paper_bits_per_dim`.
        dimension: d.

    Returns:
        Bits/dim and their standard error.
    """
    # log Z is taken at noise that drowns the images, so the two errors are independent.
    figure = bits(energy + log_z, dimension)
    return Estimate(8.0 + figure.value, figure.stderr)
