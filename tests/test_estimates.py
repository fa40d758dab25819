"""Errors over photographs: intervals hold the truth as often as they say, whatever the crops share."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from torch import Tensor

from dualscore.likelihood import Estimate, bits, mean

DRAWS = 500
TRUTH = 3.5


def crops(counts: list[int], between: float, within: float, seed: int) -> tuple[Tensor, Tensor]:
    """Figures of crops, one row a draw (DRAWS, n), and which photograph each crop is of (n,)."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shared = between * torch.randn(DRAWS, len(counts), generator=generator, dtype=torch.float64)
    own = within * torch.randn(DRAWS, len(groups), generator=generator, dtype=torch.float64)
    return TRUTH + shared[:, groups] + own, groups


def covered(values: Tensor, groups: Tensor | None) -> float:
    """Share of the draws whose 95 % interval holds the truth."""
    intervals = [mean(draw, groups).interval() for draw in values]
    return sum(low < TRUTH < high for low, high in intervals) / len(intervals)


@pytest.mark.parametrize("photographs", [5, 20, 100])
@pytest.mark.parametrize(("between", "within"), [(1.0, 0.5), (0.2, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    photographs: int, between: float, within: float
) -> None:
    values, groups = crops([8] * photographs, between, within, seed=photographs)
    assert 0.93 <= covered(values, groups) <= 0.97
    errors = torch.tensor([mean(draw, groups).stderr for draw in values], dtype=torch.float64)
    exact = (between**2 + within**2 / 8) / photographs  # the variance of the mean, known here
    # The mean over draws of s²/G: its own error is that of a χ² with G − 1 degrees of freedom.
    own = math.sqrt(2 / ((photographs - 1) * DRAWS))
    assert float(errors.square().mean()) == pytest.approx(exact, rel=4 * own)


def test_as_if_images_were_independent_intervals_are_far_too_short() -> None:
    values, _ = crops([8] * 20, 1.0, 0.5, seed=0)
    assert covered(values, None) < 0.6


def test_photographs_of_unequal_numbers_of_crops() -> None:
    """Where crops are independent it is unbiased for any numbers; intervals hold where crops share much."""
    counts = [2, 3, 5, 8, 13, 4, 4, 6, 9, 10, 7, 5, 6, 12, 3, 8, 2, 9, 11, 6]
    values, groups = crops(counts, 0.0, 1.0, seed=1)
    squares = torch.tensor([mean(draw, groups).stderr ** 2 for draw in values], dtype=torch.float64)
    error = float(squares.std()) / math.sqrt(DRAWS)
    assert float(squares.mean()) == pytest.approx(1.0 / sum(counts), abs=4 * error)
    values, groups = crops(counts, 1.0, 0.5, seed=2)
    assert 0.91 <= covered(values, groups) <= 0.97  # a little short: few photographs carry much weight


def test_the_error_is_the_formula_and_order_and_names_do_not_matter() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 3.0, 6.0], dtype=torch.float64)
    groups = torch.tensor([7, 7, -2, -2, -2, 40])
    found = mean(values, groups)
    expected = 0.0
    for members in ([0, 1], [2, 3, 4], [5]):
        share = len(members) / 6
        off = sum(float(values[i]) for i in members) / len(members) - 4.0
        expected += share**2 * off**2 / (1 - share)
    assert found == Estimate(4.0, pytest.approx(math.sqrt(expected)))
    assert found.groups == 3
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    assert mean(values[order], groups[order]).stderr == pytest.approx(found.stderr)


def test_equal_numbers_of_crops_give_the_error_of_the_photographs_means() -> None:
    values, groups = crops([4] * 7, 1.0, 1.0, seed=3)
    photographs = values[0].reshape(7, 4).mean(dim=1)
    found = mean(values[0], groups)
    assert found.stderr == pytest.approx(float(photographs.std()) / math.sqrt(7))
    low, high = found.interval()
    reach = float(student.ppf(0.975, 6)) * found.stderr
    assert (low, high) == (pytest.approx(found.value - reach), pytest.approx(found.value + reach))
    narrow = found.interval(0.5)
    assert narrow[1] - found.value == pytest.approx(float(student.ppf(0.75, 6)) * found.stderr)


def test_one_photograph_has_no_error_and_says_so() -> None:
    found = mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([4, 4, 4]))
    assert found.value == 3.0
    assert math.isnan(found.stderr)
    assert found.groups == 1
    assert str(found) == "3.000 (no error: one photograph)"
    assert found.interval() == (-math.inf, math.inf)
    assert math.isinf(found.quantile(2.0))
    # Nothing that is added to it gives it one.
    assert str(found + Estimate(1.0, 0.1)) == "4.000 (no error: one photograph)"
    assert math.isnan(bits(found, 10).stderr)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_images_of_their_own_have_the_plain_standard_error(values: list[float]) -> None:
    whole = torch.tensor(values, dtype=torch.float64)
    plain, alone = mean(whole), mean(whole, torch.arange(len(values)))
    error = float(whole.std()) / math.sqrt(len(values))
    assert plain.stderr == pytest.approx(error, abs=1e-9)
    assert alone.stderr == pytest.approx(error, abs=1e-9)
    assert plain.groups == alone.groups == len(values)
    assert plain.value == alone.value == pytest.approx(float(whole.mean()), abs=1e-9)


def test_sums_keep_the_fewer_photographs() -> None:
    few, many, known = Estimate(1.0, 0.3, 5), Estimate(2.0, 0.4, 100), Estimate(0.5, 0.0)
    assert (few + many).groups == (many - few).groups == 5
    assert (few + many).stderr == pytest.approx(0.5)
    # What has no error takes no part, and an error that is known otherwise has no photographs.
    assert (many + known).groups == 100
    assert (Estimate(1.0, 0.0, 2) + many).groups == 100
    assert (Estimate(1.0, 0.1) + many).groups == 100
    assert (known + known).groups == 0
    assert (few * -3.0).groups == 5


def test_an_error_that_is_known_otherwise_has_the_normal_laws_interval() -> None:
    low, high = Estimate(1.0, 0.5).interval()
    assert (low, high) == (pytest.approx(1 - 0.5 * 1.9599639845), pytest.approx(1 + 0.5 * 1.9599639845))
    assert Estimate(1.0, 0.5).quantile(2.0) == 2.0
    # As often as two deviations of a normal law: 97.7 % on one side.
    assert Estimate(1.0, 0.5, 3).quantile(2.0) == pytest.approx(float(student.ppf(0.9772498680518208, 2)))
    assert Estimate(1.0, 0.5, 10**6).quantile(2.0) == pytest.approx(2.0, abs=1e-4)
