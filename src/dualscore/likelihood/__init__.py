"""Every estimate of a likelihood, their units, and the checks that they are consistent. Torch only."""

from dualscore.likelihood.bound import BoundTerms, Mirrored, variational_bound
from dualscore.likelihood.certificate import BoundedRows, Certificate, bounded_rows, certify, population_limit
from dualscore.likelihood.estimates import Estimate, mean
from dualscore.likelihood.mass import (
    LogMean,
    Mass,
    Weighed,
    annealed_mass,
    falling_levels,
    log_mean,
    mass_of,
    pilot_step_sizes,
    weigh_chains,
)
from dualscore.likelihood.normalizer import (
    MeasuredMass,
    Normalization,
    importance_weights,
    log_normalizer,
    measured_mass,
    normalizer_variances,
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
    "BoundTerms", "BoundedRows", "Certificate", "Estimate", "LogMean", "Mass", "MeasuredMass", "Mirrored",
    "Normalization", "OdeEnergy", "Weighed", "annealed_mass", "bits", "bits_per_dim", "bounded_rows",
    "certify", "check_clean", "check_floating", "decibels_per_dim", "dequantized_bits_per_dim",
    "falling_levels", "importance_weights", "log_mean", "log_normalizer", "mass_of", "mean",
    "measured_mass", "noise_entropy", "normalizer_variances", "ode_energy", "paper_bits_per_dim",
    "pilot_step_sizes", "population_limit", "variational_bound", "weigh_chains",
]  # fmt: skip
