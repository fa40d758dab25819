"""Sampling from an energy: annealed and exact, along the flow, given parts of an image; and its mass."""

from dualscore.likelihood import effective_samples
from dualscore.sampling.annealed import T_MIN, Annealed, anneal, levels, resample, start_from
from dualscore.sampling.mass import Mass, Weighed, importance_weights, mass_of, measured_mass, weigh_chains
from dualscore.sampling.metropolis import Chain, Condition, Known, Noisy, mala
from dualscore.sampling.sample_images import (
    Method,
    Samples,
    flow,
    inpaint,
    last_variance,
    posterior,
    sample,
)

__all__ = [
    "T_MIN", "Annealed", "Chain", "Condition", "Known", "Mass", "Method", "Noisy", "Samples", "Weighed",
    "anneal", "effective_samples", "flow", "importance_weights", "inpaint", "last_variance", "levels", "mala",
    "mass_of", "measured_mass", "posterior", "resample", "sample", "start_from", "weigh_chains",
]  # fmt: skip
