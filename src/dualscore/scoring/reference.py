"""The reported images' energies, which an evaluation of the checkpoint kept, to rank others among."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dualscore.evaluation.open_checkpoint import DEFINITIONS
from dualscore.evaluation.store import RowStore, read_json
from dualscore.files.archives import sha256

WHICH = {"val": "validation images", "test": "test images"}
"""Splits whose images are reported, and what those are called."""


@dataclass(frozen=True)
class Reference:
    """Energies of a set of images.

    Args:
        energies: U(x, 0) in nats, without log Z, shape (n,).
        source: the folder of their rows, or the model file.
        which: what the images are, for people.
    """

    energies: Tensor
    source: str
    which: str = "validation images"

    def percentile(self, energy: Tensor) -> Tensor:
        """Share of the set that is less probable, in percent; equals count half.

        Args:
            energy: U(x, 0) of other images by the same model, without log Z, shape (B,).

        Returns:
            0 (less probable than every one of the set) to 100, float64, shape (B,).
        """
        rising = self.energies.double().cpu().sort().values
        energy = energy.double().cpu()
        at_most = torch.searchsorted(rising, energy, right=True)
        below = torch.searchsorted(rising, energy)
        higher = len(rising) - at_most
        return 100.0 * (higher + 0.5 * (at_most - below)) / len(rising)


def find_reference(checkpoint: Path) -> Reference | None:
    """The rows that an evaluation kept of the images that it reports, on the pixel lattice at t = 0.

    Args:
        checkpoint: the file whose evaluation is wanted: its content must be what was evaluated.

    Returns:
        Those of the most images; None where there are none.
    """
    wanted = {"checkpoint": sha256(checkpoint), "definitions": DEFINITIONS}
    found = []
    # Where `evaluate` keeps them: in the run's folder, or beside the checkpoint that it was given.
    for root in (checkpoint.parent.parent / "evaluation", checkpoint.parent / "evaluation"):
        for description in sorted(root.glob("paper-*/identity.json")):
            identity = read_json(description)
            which = WHICH.get(identity.get("split", ""))
            if which and all(identity.get(key) == value for key, value in wanted.items()):
                energies = RowStore(root, "paper", identity, rank=0).read().get("energy")
                if energies is not None and len(energies):
                    found.append(Reference(energies, str(description.parent), which))
    return max(found, key=lambda reference: len(reference.energies), default=None)
