"""Denoisers of other libraries, each imported when it is used; `dualscore.denoisers` says what they become.

None of them executes code of a model's folder, reads a pickle, or asks a network for anything.
"""

from dualscore.adapters.diffusers_model import of_diffusers, read_diffusers
from dualscore.adapters.told_deviations import of_azula, of_deepinv

__all__ = ["of_azula", "of_deepinv", "of_diffusers", "read_diffusers"]
