"""Sampling from an energy: annealed and exact, along the flow, and given parts of an image. Torch only."""

from dualscore.annealing import (
    Annealed,
    Chain,
    Condition,
    Known,
    Noisy,
    anneal,
    effective_samples,
    mala,
    resample,
    start_from,
)
from dualscore.sampling.sample_images import (
    T_MIN,
    Method,
    Samples,
    flow,
    inpaint,
    last_variance,
    levels,
    posterior,
    sample,
)

__all__ = [
    "T_MIN", "Annealed", "Chain", "Condition", "Known", "Method", "Noisy", "Samples", "anneal",
    "effective_samples", "flow", "inpaint", "last_variance", "levels", "mala", "posterior", "resample",
    "sample", "start_from",
]  # fmt: skip
