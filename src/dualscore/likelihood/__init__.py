"""Every estimate of a likelihood, their units, and the checks that they are consistent."""

from dualscore.likelihood.bound import BoundTerms, Mirrored, variational_bound
from dualscore.likelihood.certificate import BoundedRows, Certificate, bounded_rows, certify, population_limit
from dualscore.likelihood.estimates import Estimate, mean
from dualscore.likelihood.normalizer import (
    LogMean,
    MeasuredMass,
    Normalization,
    effective_samples,
    log_mean,
    log_normalizer,
    paper_bits_per_dim,
)
from dualscore.likelihood.ode import OdeEnergy, ode_energy
from dualscore.likelihood.units import (
    bits,
    bits_per_dim,
    check_clean,
    check_floating,
    decibels_per_dim,
    dequantized_bits_per_dim,
    noise_entropy,
)

__all__ = [
    "BoundTerms", "BoundedRows", "Certificate", "Estimate", "LogMean", "MeasuredMass", "Mirrored",
    "Normalization", "OdeEnergy", "bits", "bits_per_dim", "bounded_rows", "certify", "check_clean",
    "check_floating", "decibels_per_dim", "dequantized_bits_per_dim", "effective_samples", "log_mean",
    "log_normalizer", "mean", "noise_entropy", "ode_energy", "paper_bits_per_dim", "population_limit",
    "variational_bound",
]  # fmt: skip
