"""The word that a check comes to, at its edges, and the line that says it."""

import math

import pytest

from dualscore.energy import BY_FORM
from dualscore.likelihood import Estimate
from dualscore.measuring.verdict import TOLERANCE, Check, Word, overall, verdict

FINE, BAD, NOISY = (
    Check("log Z", "", Estimate(0.01, 0.001), 0.001),
    Check("ode − energy", "", Estimate(-0.3, 0.01), 0.01),
    Check("energy rise", "15 to 0 dB", Estimate(0.1, 0.05), 0.05),
)
LITTLE = 1e-9


def word(
    value: float, stderr: float, here: float | None = None, groups: int = 0, square: bool = False
) -> Word:
    return Check(
        "a", "", Estimate(value, stderr, groups), stderr if here is None else here, square=square
    ).word


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gap_is_consistent_below_two_errors_and_inconsistent_above_three(sign: float) -> None:
    assert word(sign * (TOLERANCE - 0.01 - LITTLE), 0.005) is Word.consistent
    assert word(sign * (TOLERANCE - 0.01 + LITTLE), 0.005) is Word.undecided
    assert word(sign * (TOLERANCE + 0.015 - LITTLE), 0.005) is Word.undecided
    assert word(sign * (TOLERANCE + 0.015 + LITTLE), 0.005) is Word.inconsistent
    assert word(0.0, 0.5 * TOLERANCE + LITTLE) is Word.undecided  # nothing is known of a gap so noisy


def test_a_mean_square_is_held_against_the_tolerances_square() -> None:
    limit = TOLERANCE**2
    assert word(0.5 * limit - LITTLE, 0.25 * limit, square=True) is Word.consistent
    assert word(0.5 * limit + LITTLE, 0.25 * limit, square=True) is Word.undecided
    assert word(2.0 * limit - LITTLE, limit / 3, square=True) is Word.undecided
    assert word(2.0 * limit + LITTLE, limit / 3, square=True) is Word.inconsistent
    # A little below zero is noise, as if it were zero; far below it is no mean square: a slope too flat.
    assert word(-1.9 * limit, limit / 3, square=True) is Word.consistent
    assert word(-1.9 * limit, limit, square=True) is Word.undecided
    assert word(-2.0 * limit - LITTLE, limit / 3, square=True) is Word.inconsistent


def test_few_photographs_widen_what_is_consistent_and_not_what_is_wrong() -> None:
    """What is wrong on the images at hand is wrong: their number of photographs says nothing for it."""
    assert word(0.005, 0.005) is Word.consistent
    assert word(0.005, 0.005, groups=1000) is Word.consistent
    assert word(0.005, 0.005, groups=3) is Word.undecided  # Student's t of 2 degrees: 4.53 deviations
    assert word(0.0, 0.0044, groups=3) is Word.consistent
    for groups in (0, 1, 2, 1000):
        stderr = math.nan if groups == 1 else 0.2
        assert word(0.05, stderr, here=0.0099, groups=groups) is Word.inconsistent
        assert word(0.05, stderr, here=0.0101, groups=groups) is Word.undecided
    # One photograph decides nothing for all of them.
    assert word(0.0, math.nan, here=0.0, groups=1) is Word.undecided


def test_other_tolerances_and_words_that_were_found_otherwise() -> None:
    rank = Check("rank", "", Estimate(0.04, 0.004), 0.004, tolerance=0.05, unit="rank")
    assert rank.word is Word.consistent
    assert rank.excess == pytest.approx(0.8)
    assert str(rank) == "rank: +0.040 ± 0.004 rank"
    said = Check("mass", "", Estimate(9.0, 0.1), 0.1, unit="nats", said=Word.undecided)
    assert said.word is Word.undecided


def test_a_root_mean_square_is_shown_with_what_could_hide() -> None:
    check = Check("heat", "15 dB", Estimate(0.04, 0.009), 0.009, square=True)
    assert (check.size, check.error) == (pytest.approx(0.2), pytest.approx(math.sqrt(0.049) - 0.2))
    assert check.excess == pytest.approx(0.2 / TOLERANCE)
    assert str(check) == "heat, 15 dB: 0.200 ± 0.021 bits/dim rms"
    lost = Check("heat", "", Estimate(-0.01, 0.0004), 0.0004, square=True)
    assert (lost.size, lost.error) == (0.0, pytest.approx(0.02))
    alone = Check("heat", "", Estimate(0.04, math.nan, 1), 0.01, square=True)
    assert str(alone) == "heat: 0.200 bits/dim rms"


def test_one_word_for_all() -> None:
    assert overall([FINE, FINE]) is Word.consistent
    assert overall([FINE, NOISY]) is Word.undecided
    assert overall([NOISY, FINE, BAD]) is Word.inconsistent


def test_the_line() -> None:
    said = verdict([FINE, FINE], 768, "512 images of 2 photographs")
    assert said == (
        "consistent within 0.02 bits/dim (10.6 nats an image); largest gap: log Z: +0.010 ± 0.001 bits/dim. "
        "Of 2 checks 2 consistent, on 512 images of 2 photographs; the mass was not measured; mass that "
        "neither these images nor the chains come near cannot be seen"
    )
    assert f"({0.02 * 12288 * math.log(2):.1f} nats an image)" in verdict([FINE], 12288, "")
    wrong = verdict([FINE, BAD, NOISY], 768, "9 images")
    assert wrong.startswith("INCONSISTENT: ode − energy: -0.300 ± 0.010 bits/dim. Of 3 checks ")
    assert "1 consistent, 1 inconsistent, 1 undecided, on 9 images" in wrong
    unsure = verdict([FINE, NOISY], 768, "9 images")
    assert unsure.startswith("undecided: energy rise, 15 to 0 dB: +0.100 ± 0.050 bits/dim. Of 2 checks ")
    assert verdict([], 768, "") == "not checked"


def test_the_largest_are_spelt_out_and_the_mass_is_not_called_unmeasured() -> None:
    worse = Check("worse", "", Estimate(2.0, 0.01), 0.01)
    said = verdict([BAD] * 6 + [worse], 768, "9 images")
    assert said.startswith("INCONSISTENT: worse: +2.000")
    assert "; and 4 more. Of 7 checks" in said
    mass = Check("mass", "", Estimate(0.1, 0.01), 0.01, tolerance=1.0, unit="nats")
    assert "the mass was not measured" in said
    assert "the mass was not measured" not in verdict([FINE, mass], 768, "")
    assert "cannot be seen" in verdict([FINE, mass], 768, "9 images and 64 chains")
    by_form = Check("mass", BY_FORM, Estimate(0.0, 0.0), 0.0, tolerance=1.0, unit="nats")
    assert "mass" not in verdict([FINE, by_form], 768, "9 images").partition("9 images")[2]
    # Gaps of different units are compared by their tolerances: 0.1 nats of 1 are less than 0.01 of 0.02.
    assert "largest gap: log Z" in verdict([mass, FINE], 768, "")
