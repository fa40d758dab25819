"""What an evaluation beside a checkpoint found of its energy's mass."""

import json
from pathlib import Path

from dualscore.errors import DualscoreError
from dualscore.files.archives import sha256
from dualscore.files.typed_json import TypedJson
from dualscore.likelihood.normalizer import MeasuredMass, moved


def read_mass(entry: TypedJson) -> MeasuredMass:
    """A mass as JSON holds it.

    Args:
        entry: the object.

    Returns:
        The mass.

    Raises:
        DualscoreError: naming the key that is missing or no number.
    """
    return MeasuredMass(
        nats=entry["nats"].number(),
        stderr=entry["stderr"].number(0.0),
        limit=entry["limit"].number(),
        bits=entry["bits"].number(),
        limit_bits=entry["limit_bits"].number(),
        effective_share=entry["effective_share"].number(0.0),
        noise_variance=entry["noise_variance"].number(1e-300),
    )


def evaluated_mass(checkpoint: Path, log_normalizer: float, dimension: int) -> MeasuredMass | None:
    """The mass that an evaluation of this very checkpoint measured, for the log Z that the checkpoint holds.

    Args:
        checkpoint: the file.
        log_normalizer: its log Z in nats, which differs a little from the evaluation's.
        dimension: d.

    Returns:
        The mass; None where no evaluation of it is found, or it measured none.
    """
    digest = None
    for report in (checkpoint.parent.parent / "evaluation.json", checkpoint.parent / "evaluation.json"):
        try:
            content = json.loads(report.read_text(encoding="utf-8"))
            found, other = content["normalization"], content["checkpoint_sha256"]
            if found["mass"] is None:
                continue
            digest = digest or sha256(checkpoint)
            if other == digest:
                mass = read_mass(TypedJson(found["mass"], report))
                return moved(mass, float(found["value"]) - log_normalizer, dimension)
        except (OSError, ValueError, KeyError, TypeError, DualscoreError):
            continue  # an evaluation of another version, or of another checkpoint
    return None
