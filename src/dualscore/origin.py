"""Where a model comes from: what a file needs to hold beside its weights, so that it can be written again."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """What a model was made of, and what is known of it.

    Args:
        name: of the experiment, or of the file it was converted from.
        architecture: plain values that the network is rebuilt from; see `dualscore.architecture`.
        facts: where the weights come from, for people: a name and a text each.
        evaluation: evaluation.json without the paths in it; None where it was not evaluated.
        energies: U(x, 0) of the validation images in nats, without log Z, to rank others among, rising,
            float64, shape (n,); None where they are not known.
        licence: under which terms the weights may be used; empty where nobody said.
    """

    name: str
    architecture: dict[str, Any]
    facts: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    energies: Tensor | None = None
    licence: str = ""
