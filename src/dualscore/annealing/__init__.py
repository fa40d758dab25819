"""From noise down to a density, with weights that make it exact, for sampling and measuring. Torch only."""

from dualscore.annealing.annealed import Annealed, anneal, effective_samples, resample, start_from
from dualscore.annealing.conditions import NOTHING, Condition, Known, Noisy
from dualscore.annealing.metropolis import Chain, Random, mala
from dualscore.annealing.reverse import contrast, step_down

__all__ = [
    "NOTHING", "Annealed", "Chain", "Condition", "Known", "Noisy", "Random", "anneal", "contrast",
    "effective_samples", "mala", "resample", "start_from", "step_down",
]  # fmt: skip
