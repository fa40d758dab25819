"""What a model was made of, and what is known of it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """What a model was made of, and what is known of it.

    Args:
        name: of the experiment, or of the file it was converted from.
        architecture: plain values that the network is rebuilt from; see `dualscore.model_files.architecture`.
        facts: where the weights come from, for people: a name and a text each.
        evaluation: evaluation.json without the paths in it; None where it was not evaluated.
        energies: U(x, 0) of the validation images in nats, without log Z, to rank others among, rising,
            float64, shape (n,); None where they are not known.
        licence: under which terms the weights may be used; empty where nobody said.
        references: of photographs of several sizes, bits/dim and number of pixels, to rank others among,
            float64, shape (n, 2); None where there are none.
        reference_name: what those photographs are, for people.
    """

    name: str
    architecture: dict[str, Any]
    facts: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    energies: Tensor | None = None
    licence: str = ""
    references: Tensor | None = None
    reference_name: str = ""
