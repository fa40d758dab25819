"""Checks, the word that each comes to, and one line about all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dualscore.energy import BY_FORM
from dualscore.likelihood.estimates import Estimate

TOLERANCE = 0.02  # bits/dim up to which two figures are called the same
MASS_TOLERANCE = 1.0  # nats up to which an energy's mass is called one


class Word(Enum):
    """The outcome of a check."""

    consistent = "consistent"  # the gap is below its tolerance, by two standard errors over photographs
    inconsistent = "inconsistent"
    """The gap of the images that were looked at is above it, by three standard errors over images."""
    undecided = "undecided"  # neither


@dataclass(frozen=True)
class Check:
    """The difference of two figures that are the same for every −log p, or its root mean square."""

    name: str  # what is compared
    where: str  # at which noise levels; empty where the check has none
    gap: Estimate  # the difference, in `unit`; of a root mean square that of the square, in its unit squared
    here: float
    """The gap's standard error over the images alone. If the energy were right, every image's gap would be
    zero but for independent noise: so many deviations, whatever photographs they are of."""
    tolerance: float = TOLERANCE  # in `unit`
    unit: str = "bits/dim"  # or `nats` or `rank`
    square: bool = False  # whether the gap is a mean square
    decisive: bool = True
    """Whether the check must be consistent for the energy to be called so; others, of which few images say
    little, only testify against it."""
    of_images: bool = False
    """Whether it holds for the density of these images only: a wrong density may fail it and be one all the
    same. Such checks are told apart."""
    said: Word | None = None  # the word, where it was found in another way

    @property
    def word(self) -> Word:
        """Consistent: |gap| + 2σ < tolerance; inconsistent: |gap| − 3σ > tolerance; else undecided."""
        if self.said is not None:
            return self.said
        limit = self.tolerance**2 if self.square else self.tolerance
        # A mean square a little below zero is noise; far below it is none.
        if abs(self.gap.value) - 3.0 * self.here > limit:
            return Word.inconsistent
        size = max(self.gap.value, 0.0) if self.square else abs(self.gap.value)
        if size + self.gap.quantile(2.0) * self.gap.stderr < limit:
            return Word.consistent
        return Word.undecided

    @property
    def size(self) -> float:
        """The gap in `unit`: with its sign, or the root of a mean square (0 if that is negative)."""
        if math.isnan(self.gap.value):
            return math.nan
        return math.sqrt(max(self.gap.value, 0.0)) if self.square else self.gap.value

    @property
    def error(self) -> float:
        """The standard error of `size`, to first order; where a square is lost in noise, what could hide."""
        if not self.square:
            return self.gap.stderr
        return math.sqrt(max(self.gap.value, 0.0) + self.gap.stderr) - self.size

    @property
    def excess(self) -> float:
        """The gap in tolerances; 0 where it is not finite."""
        return 0.0 if math.isnan(self.size) else abs(self.size) / self.tolerance

    def __str__(self) -> str:
        """`energy rise, 30 to 15 dB: +0.031 ± 0.002 bits/dim`."""
        place = f", {self.where}" if self.where else ""
        error = "" if math.isnan(self.error) else f" ± {self.error:.3f}"
        size, rms = (f"{self.size:.3f}", " rms") if self.square else (f"{self.size:+.3f}", "")
        return f"{self.name}{place}: {size}{error} {self.unit}{rms}"


def overall(checks: Sequence[Check]) -> Word:
    """One word for all: inconsistent if one check is, consistent if all that are decisive are.

    Checks that compare the density with that of the images do not count: a poor density is one.
    """
    checks = [check for check in checks if not check.of_images]
    if any(check.word is Word.inconsistent for check in checks):
        return Word.inconsistent
    decisive = {check.word for check in checks if check.decisive}
    return Word.consistent if decisive == {Word.consistent} else Word.undecided


def verdict(checks: Sequence[Check], dimension: int, looked_at: str, listed: int = 3) -> str:
    """One line in words: what the checks came to, and where; what was looked at, and what cannot be seen.

    `looked_at` is what the checks are of, such as `512 images of 2 photographs and 64 chains`; of the checks
    the `listed` largest are spelt out.
    """
    word, others = overall(checks), [check for check in checks if check.of_images]
    checks = [check for check in checks if not check.of_images]
    if not checks:
        return "not checked"
    chosen = [c for c in checks if c.word is word and (c.decisive or word is not Word.undecided)]
    # Without any, nothing that decides was looked at.
    chosen = sorted(chosen or checks, key=lambda c: -c.excess)
    words = [check.word for check in checks]
    counts = ", ".join(f"{words.count(w)} {w.value}" for w in Word if w in words)
    tolerance = f"{TOLERANCE} bits/dim ({TOLERANCE * dimension * math.log(2.0):.1f} nats an image)"
    named = "; ".join(map(str, chosen[:listed])) + (
        f"; and {len(chosen) - listed} more" if len(chosen) > listed else ""
    )
    said = {
        Word.consistent: f"consistent within {tolerance}; largest gap: {chosen[0]}",
        Word.inconsistent: f"INCONSISTENT: {named}",
        Word.undecided: f"undecided: {named}",
    }[word]
    masses = [check for check in checks if check.name == "mass"]
    unseen = "; mass that neither these images nor the chains come near cannot be seen"
    if not masses:
        unseen = f"; the mass was not measured{unseen}"
    elif masses[0].where == BY_FORM:
        unseen = ""
    off = sorted((c for c in others if c.word is Word.inconsistent), key=lambda c: -c.excess)
    fit = f". As a model of these images: {len(off)} of {len(others)} statistics off" if others else ""
    fit += f", most {off[0]}" if off else ""
    return f"{said}. Of {len(checks)} checks {counts}, on {looked_at}{unseen}{fit}"
