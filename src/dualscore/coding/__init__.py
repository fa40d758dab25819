"""Images as bits, by the denoiser's bound: bits back."""

from dualscore.coding.bits_back import BitsBack, Parts
from dualscore.coding.noise_levels import NoiseLevels
from dualscore.coding.range_of_levels import last_variance
from dualscore.coding.stack import OutOfRangeError, Stack, lent, require_constriction

__all__ = [
    "BitsBack",
    "NoiseLevels",
    "OutOfRangeError",
    "Parts",
    "Stack",
    "last_variance",
    "lent",
    "require_constriction",
]
