"""One run of a study, and how two variants differ."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One run: bits/dim along it, and its final evaluation. Without figures where it diverged."""

    variant: str
    seed: int
    seconds_per_step: float
    steps: list[int]
    bound: list[float]
    paper: list[float]
    final: dict[str, float]
    """bits/dim by estimator, at the checkpoint with the lowest bound."""
    gap: float | None
    """Dequantized less bound, on the images of which both were measured."""
    verdict: str
    diverged: str


def paired(results: Sequence[Result], first: str, variant: str, estimate: str) -> list[float]:
    """What a variant's figure is above that of another with the same seed, one difference a seed.

    Args:
        results: finished runs.
        first: the variant that is compared with.
        variant: the variant.
        estimate: which of the final figures, in bits/dim.

    Returns:
        The differences, of seeds where both have the figure.
    """
    by_seed = {r.seed: r.final for r in results if r.variant == first}
    mine = {r.seed: r.final for r in results if r.variant == variant}
    return [
        mine[seed][estimate] - by_seed[seed][estimate]
        for seed in mine
        if estimate in mine[seed] and estimate in by_seed.get(seed, {})
    ]
