"""Sampling from an energy: annealed and exact, along the flow, given parts of an image or measurements."""

from dualscore.likelihood import effective_samples
from dualscore.sampling.annealed import T_MIN, Annealed, anneal, levels, resample, start_from
from dualscore.sampling.given_measurements import Evidence, evidence
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
    "T_MIN", "Annealed", "Chain", "Condition", "Evidence", "Known", "Method", "Noisy", "Samples", "anneal",
    "effective_samples", "evidence", "flow", "inpaint", "last_variance", "levels", "mala", "posterior",
    "resample", "sample", "start_from",
]  # fmt: skip
