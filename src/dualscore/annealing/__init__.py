"""From noise down to a density, with weights that make it exact: what sampling and measuring share. Torch only."""

from dualscore.annealing.annealed import Annealed, anneal, effective_samples, resample, start_from
from dualscore.annealing.conditions import NOTHING, Condition, Known, Noisy
from dualscore.annealing.metropolis import Chain, mala

__all__ = [
    "NOTHING",
    "Annealed",
    "Chain",
    "Condition",
    "Known",
    "Noisy",
    "anneal",
    "effective_samples",
    "mala",
    "resample",
    "start_from",
]
