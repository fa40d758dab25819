"""Areas under ROC curves, and the scores of images of another kind, against known answers."""

import math

import numpy as np
import pytest
import torch
from scipy import spatial, stats
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from torch import Tensor

from dualscore.errors import ScoreError
from dualscore.scoring.detect_ood import draw
from dualscore.scoring.ood_scores import (
    SCORES,
    Area,
    area,
    curve,
    profile_distance,
    reference_half,
    shrunk_correlation,
    typicality,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Areas.


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_areas_are_those_of_others(scale: float) -> None:
    inside, outside = scale * normal(70), scale * (normal(50, seed=1) + 0.7) + 3.0 * scale
    inside[:9], outside[:5] = 3.0 * scale, 3.0 * scale  # ties, also between the sides
    found = area(inside, outside)
    labels = [0] * 70 + [1] * 50
    assert found.auroc == pytest.approx(roc_auc_score(labels, torch.cat([inside, outside])), abs=1e-6)
    pairs = stats.mannwhitneyu(outside, inside).statistic / (70 * 50)
    assert found.auroc == pytest.approx(pairs, abs=1e-6)
    false_rate, true_rate = curve(inside, outside)
    assert float(torch.trapezoid(true_rate.double(), false_rate.double())) == pytest.approx(pairs, abs=1e-6)


def test_intervals_cover_the_known_area_of_two_normals() -> None:
    """The area of N(0, 1) against N(d′, 1) is Φ(d′/√2)."""
    truth = stats.norm.cdf(1.0 / math.sqrt(2.0))
    covered, repeats = 0, 200
    for k in range(repeats):
        found = area(normal(100, seed=2 * k), 1.0 + normal(100, seed=2 * k + 1))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    # 95 %, less a little with percentiles of few images: ± 3 standard errors of 200 repeats are ± 5 %.
    assert 0.885 <= covered / repeats <= 0.985


def crops(photographs: int, each: int, seed: int) -> Tensor:
    """Scores N(0, 1) of crops, half of whose variance is their photograph's."""
    own, common = normal(photographs, each, seed=seed), normal(photographs, 1, seed=seed + 1)
    return ((own + common) / math.sqrt(2.0)).flatten()


@pytest.mark.parametrize("photographs", [3, 5, 30])
def test_intervals_over_photographs_cover_where_those_over_crops_do_not(photographs: int) -> None:
    truth, repeats, each = stats.norm.cdf(1.0 / math.sqrt(2.0)), 400, 10
    which = torch.arange(photographs).repeat_interleave(each)
    covered = {"photographs": 0, "crops": 0}
    for k in range(repeats):
        inside, outside = crops(photographs, each, 4 * k), 1.0 + crops(photographs, each, 4 * k + 2)
        for over, given in (("photographs", (which, which)), ("crops", None)):
            found = area(inside, outside, given)
            assert found.low is not None
            assert found.high is not None
            covered[over] += found.low <= truth <= found.high
    # ± 3 standard errors of 400 repeats are ± 3 %; with few photographs the logit's t is on the safe side.
    assert covered["photographs"] / repeats >= 0.92
    assert covered["crops"] / repeats < 0.75


def test_the_error_is_delongs_and_that_of_photographs_with_all_their_images() -> None:
    inside, outside = normal(40), 0.5 + normal(30, seed=1)
    found = area(inside, outside)
    shares = (outside[None, :] > inside[:, None]).double()
    variance = shares.mean(1).var() / 40 + shares.mean(0).var() / 30
    assert found.low is not None
    odds = math.log(found.auroc / (1 - found.auroc))
    half = stats.t.ppf(0.975, 29) * math.sqrt(variance) / (found.auroc * (1 - found.auroc))
    assert found.low == pytest.approx(1 / (1 + math.exp(half - odds)), rel=1e-6)
    # Copies of an image say nothing new, where they are known to be copies.
    copied = area(inside.repeat_interleave(9), outside.repeat_interleave(9))
    known = torch.arange(40).repeat_interleave(9), torch.arange(30).repeat_interleave(9)
    assert copied.low is not None
    assert copied.low > found.low + 0.03
    assert area(inside.repeat_interleave(9), outside.repeat_interleave(9), known).low == pytest.approx(
        found.low
    )
    alone = torch.zeros(40, dtype=torch.long), torch.arange(30)
    assert area(inside, outside, alone) == Area(found.auroc, None, None)
    apart = area(torch.zeros(5), torch.ones(4))
    assert (apart.auroc, apart.low, apart.high) == (1.0, 1.0, 1.0)


# Scores.


def test_typicality_of_a_normal_reference_is_its_two_sided_tail() -> None:
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    reference = torch.from_numpy(stats.norm.ppf(levels.numpy(), 3.0, 0.5))
    bits = torch.tensor([3.0, 2.5, 3.5, 2.0, 4.0])
    exact = -np.log(2 * stats.norm.cdf(-np.abs(bits.numpy() - 3.0) / 0.5))
    found = typicality(bits.double(), reference)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=0.03)
    far = typicality(torch.tensor([-10.0, -5.0, 10.0, 12.0], dtype=torch.float64), reference)
    assert far.isfinite().all()
    assert far[0] > far[1] > 30  # beyond the reference strangeness still grows
    assert far[3] > far[2] > 30


def test_a_tail_probability_is_fair_to_a_skewed_reference() -> None:
    """Of a Gumbel's two tails the long one hides what the short one would show, to an absolute distance."""
    draw = np.random.default_rng(0)
    decibels = draw.gumbel(9.57, 3.17, 2000)  # the paper's fit, figure 3
    reference, inside = torch.from_numpy(-decibels[:1000]), torch.from_numpy(-decibels[1000:])
    outside = torch.from_numpy(-draw.normal(stats.gumbel_r.ppf(0.005, 9.57, 3.17), 0.1, 500))
    middle = reference.median()
    tail = area(typicality(inside, reference), typicality(outside, reference)).auroc
    distance = area((inside - middle).abs(), (outside - middle).abs()).auroc
    assert tail > 0.97
    assert distance < 0.92


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    for count, mixing in ((15, 0.0), (40, 0.5), (500, 2.0)):
        data = normal(count, 6) + mixing * normal(count, 1, seed=1)
        data = (data - data.mean(dim=0)) / data.std(dim=0, correction=0)
        found, shrinkage = shrunk_correlation(data)
        matrix, expected = ledoit_wolf(data.numpy(), assume_centered=True)
        assert shrinkage == pytest.approx(expected, abs=1e-10)
        assert np.allclose(found, matrix)
    assert shrunk_correlation(normal(4, 1) * 0 + 1)[1] == 1.0


def test_the_profiles_distance_is_mahalanobis() -> None:
    mixing = normal(4, 4, seed=3)
    logs = normal(100_000, 4) @ mixing + 2.0
    found = profile_distance(logs[:20].exp(), logs.exp())
    inverse = np.linalg.inv((mixing.T @ mixing).numpy())
    exact = [spatial.distance.mahalanobis(row, np.full(4, 2.0), inverse) for row in logs[:20].numpy()]
    assert found.tolist() == pytest.approx(exact, rel=0.03)
    # Units cancel: another dimension at one level moves nothing.
    scaled = torch.tensor([1.0, 50.0, 1.0, 1e-3], dtype=torch.float64)
    again = profile_distance(logs[:20].exp() * scaled, logs.exp() * scaled)
    assert torch.allclose(found, again)


def test_scores_need_a_reference_that_varies() -> None:
    with pytest.raises(ScoreError, match="same probability"):
        typicality(torch.ones(3).double(), torch.full((30,), 2.0, dtype=torch.float64))
    constant = torch.cat([normal(30, 1).exp(), torch.ones(30, 1).double()], dim=1)
    with pytest.raises(ScoreError, match="same profile"):
        profile_distance(constant, constant)
    # A reference of which more than half is one image has no quartiles apart, but a spread.
    bits = torch.cat([torch.full((25,), 2.0), torch.arange(5.0)]).double()
    assert typicality(bits, bits).isfinite().all()


def test_the_reference_half_is_chosen_by_content() -> None:
    keys = [f"{k * 7919 % 101:03d}" for k in range(101)]
    chosen = reference_half(keys)
    assert int(chosen.sum()) == 51
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reference_half([keys[k] for k in order]), chosen[order])
    doubled = reference_half([*keys, *keys])
    assert torch.equal(doubled, torch.cat([chosen, chosen]))


def test_the_drawn_curves_have_the_areas() -> None:
    inside = {name: normal(50, seed=k) for k, name in enumerate(SCORES)}
    outside = {name: normal(40, seed=9) + k for k, name in enumerate(SCORES)}
    areas = {name: area(inside[name], outside[name]) for name in SCORES}
    figure = draw(inside, outside, areas, {}).figure
    _, *lines = figure.axes[0].lines
    drawn = [np.trapezoid(line.get_ydata(), line.get_xdata()) for line in lines]
    assert drawn == pytest.approx([found.auroc for found in areas.values()], abs=1e-6)
    assert drawn == sorted(drawn)
    assert drawn[-1] > 0.8
