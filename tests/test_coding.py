"""Bits back: what goes onto the stack comes back, and takes as many bits as the bound says."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dualscore.coding import BitsBack, NoiseLevels, OutOfRangeError, Stack, last_variance
from dualscore.coding.stack import log_normal
from dualscore.energy import Gradients, ScoreModel
from dualscore.errors import CodingError
from dualscore.evaluation.causal import CausalMLP
from dualscore.evaluation.causal_code import decode, encode
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import bits, variational_bound
from dualscore.likelihood.bound import bound_range
from known_gaussian import Known
from workspace import TINY, Workspace

pytest.importorskip("constriction")
WORDS = np.random.default_rng(0).integers(1, 2**32, 20_000, dtype=np.uint32)
SIDE = 6


def smooth(channels: int = 1) -> StationaryGaussian:
    """Of images of which low frequencies have most of the variance."""
    frequency = torch.arange(SIDE)[:, None] ** 2 + torch.arange(SIDE)[None, :] ** 2
    own = 0.02 / (1.0 + frequency) + 1e-4
    mixing = torch.eye(channels) + 0.5
    return StationaryGaussian(torch.full((channels,), 0.5), mixing[:, :, None, None] * own)


def grey_levels(gaussian: StationaryGaussian, count: int, seed: int) -> Tensor:
    """Images of a Gaussian, rounded to 8 bits."""
    clean = gaussian.sample(count, torch.Generator().manual_seed(seed))
    return (clean.clamp(0, 1) * 255.0).round().to(torch.uint8)


@given(st.integers(0, 2**31), st.floats(0.05, 300.0))
def test_numbers_come_back_and_leave_the_stack_as_it_was(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = 40.0 * torch.randn(3, 50, generator=generator, dtype=torch.float64)
    deviation = spread * (0.5 + torch.rand(3, 1, generator=generator, dtype=torch.float64))
    stack = Stack(WORDS)
    drawn = stack.pop_normal(mean, deviation)
    table = torch.rand(150, 9, generator=generator, dtype=torch.float64)
    level = stack.pop_table(table / table.sum(1, keepdim=True))
    assert not np.array_equal(stack.words(), WORDS)
    stack.push_table(level, table / table.sum(1, keepdim=True))
    stack.push_normal(drawn, mean, deviation)
    assert np.array_equal(stack.words(), WORDS)


@pytest.mark.parametrize("deviation", [0.3, 2.0, 9.0])
def test_popping_draws_and_takes_the_bits_that_the_probabilities_say(deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 40.0 * torch.randn(1, 100_000, generator=generator, dtype=torch.float64)
    width = torch.full((1, 1), deviation, dtype=torch.float64)
    stack = Stack(WORDS)
    drawn = stack.pop_normal(mean, width)
    taken = 32 * len(WORDS) - stack.bits
    expected = -float(log_normal(drawn, mean, width).sum()) / math.log(2.0)
    assert taken == pytest.approx(expected, rel=2e-3)
    error = (drawn - mean)[0]
    assert float(error.mean()) == pytest.approx(0.0, abs=5 * deviation / math.sqrt(1e5) + 2e-3)
    assert float(error.var()) == pytest.approx(deviation**2 + 1 / 12, rel=0.03)


def test_the_probabilities_of_a_rounded_normal_sum_to_one() -> None:
    numbers = torch.arange(-60, 61)
    for mean, deviation in ((0.3, 0.2), (-7.499, 3.0)):
        at = torch.full((121,), mean, dtype=torch.float64), torch.full((121,), deviation, dtype=torch.float64)
        assert float(log_normal(numbers, *at).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_number_out_of_reach_is_told_and_nothing_is_pushed() -> None:
    stack = Stack(WORDS)
    numbers = torch.tensor([[0, 1], [2, 90], [0, 0]])
    with pytest.raises(OutOfRangeError) as caught:
        stack.push_normal(
            numbers, torch.zeros(3, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        )
    assert caught.value.images == [1]
    assert np.array_equal(stack.words(), WORDS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("double", [False, True])
def test_images_come_back_in_batches_of_any_size(channels: int, double: bool) -> None:
    gaussian = smooth(channels)
    model: ScoreModel = Known(gaussian)
    like = torch.zeros(0, dtype=torch.float64 if double else torch.float32)
    code = BitsBack(model.to(like), gaussian, NoiseLevels(*bound_range((1e-7, 10.0)), 30), like)
    stack = Stack(WORDS)
    sent = [grey_levels(gaussian, count, count) for count in (1, 4, 2)]
    for images in sent:
        code.push(stack, images)
    for images in reversed(sent):
        assert torch.equal(code.pop(stack, len(images)), images)
    assert np.array_equal(stack.words(), WORDS)


def test_the_bits_are_those_of_the_images_own_law_but_for_the_levels() -> None:
    """The true score of a Gaussian, whose −log₂ P(x) is known: what the levels cost is all that is lost."""
    gaussian, count = smooth(), 2_500
    images = grey_levels(gaussian, count, 0)
    code = BitsBack(Known(gaussian).double(), gaussian, NoiseLevels(*bound_range((1e-7, 10.0)), 60))
    words = np.random.default_rng(0).integers(1, 2**32, 400_000, dtype=np.uint32)
    stack = Stack(words)
    parts = code.push(stack, images)
    taken = (stack.bits - 32 * len(words)) / images.numel()
    spent, levels, bound = (bits(part, SIDE**2) for part in parts)
    assert taken == pytest.approx(float(spent.mean()), abs=1e-3)
    noise = float((spent - levels).std()) / math.sqrt(count)
    assert noise < 0.015
    assert abs(float((spent - levels).mean())) < 3 * noise
    assert 0.0 < float((levels - bound).mean()) < 0.04
    # A cell of width 1/255 of a density that hardly changes in it.
    true = bits(gaussian(images.float() / 255.0, torch.zeros(count)).energy, SIDE**2) + math.log2(255)
    assert abs(float((bound - true).mean())) < 3 * float((bound - true).std()) / math.sqrt(count) + 0.005


def test_the_bound_beside_it_is_the_bound() -> None:
    gaussian = smooth()
    images = grey_levels(gaussian, 400, 1)
    t0, t1 = bound_range((1e-7, 10.0))
    parts = BitsBack(Known(gaussian).double(), gaussian, NoiseLevels(t0, t1, 100)).push(Stack(WORDS), images)
    other = variational_bound(
        Known(gaussian), images.float() / 255.0, gaussian,
        t0=t0, t1=t1, strata=64, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    difference = bits(parts.bound - other.total, SIDE**2)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(len(images))
    assert float(difference.std()) / math.sqrt(len(images)) < 0.04


def test_more_levels_take_fewer_bits() -> None:
    gaussian = smooth()
    images = grey_levels(gaussian, 64, 2)
    spent = []
    for steps in (10, 30, 100):
        code = BitsBack(Known(gaussian).double(), gaussian, NoiseLevels(*bound_range((1e-7, 10.0)), steps))
        spent.append(float((parts := code.push(Stack(WORDS), images)).levels.sum() - parts.bound.sum()))
    assert spent[0] > 2 * spent[1] > 4 * spent[2] > 0


class Wrong(ScoreModel):
    """A denoiser that sends every image far away."""

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        return Gradients(noisy / noise_variance[:, None, None, None] * 50.0, None)


def test_images_that_a_denoiser_is_all_wrong_of_are_refused() -> None:
    code = BitsBack(Wrong(), smooth(), NoiseLevels(1e-5, 1.0, 10))
    with pytest.raises(OutOfRangeError):
        code.push(Stack(WORDS), torch.randint(0, 256, (2, 1, SIDE, SIDE), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("t0", "t1", "steps"), [(0.0, 1.0, 9), (1.0, 1.0, 9), (1e-5, 1.0, 0), (1e-5, 1.0, 10**6)]
)
def test_levels_that_are_none_are_refused(t0: float, t1: float, steps: int) -> None:
    with pytest.raises(CodingError, match="noise levels need"):
        NoiseLevels(t0, t1, steps)


def test_the_prior_takes_over_where_it_is_as_good() -> None:
    """At once where the denoiser sees nothing; late where the prior is wrong."""
    gaussian = smooth()
    clean = grey_levels(gaussian, 64, 3).float() / 255.0

    class Blind(ScoreModel):
        def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
            return Gradients((noisy - 0.5) / noise_variance[:, None, None, None], None)

    assert last_variance(Blind(), clean, gaussian, (1e-5, 100.0)) == pytest.approx(0.01)
    worse = StationaryGaussian(torch.tensor([0.0]), 1e-3 * torch.ones(1, 1, SIDE, SIDE))
    assert last_variance(Known(gaussian), clean, worse, (1e-5, 100.0)) > 10.0


def test_an_evaluation_has_a_row_of_bits_in_the_file(
    trained_demo: Path, demo_shards: Path, workspace: Workspace
) -> None:
    """The same images' bound beside it; image by image both draw noise of their own."""
    shutil.copytree(trained_demo / "runs", workspace.folder / "runs")
    workspace.run(
        "evaluate", "patches_dual", *TINY, f"data.path={demo_shards}", "evaluate.yardsticks=[]",
        "evaluate.estimators=[bound,file]", "evaluate.subset_images=24", "evaluate.strata=32",
    )  # fmt: skip
    report = workspace.report("patches_dual")["bits_per_dim"]
    found, bound = report["file"], report["bound"]
    assert found["failed"] == 0
    assert found["decoded"] == found["images"] == bound["images"]
    assert abs(found["value"] - bound["value"]) < 0.3


def test_the_causal_network_codes_what_its_probabilities_say() -> None:
    torch.manual_seed(0)
    images = torch.randint(100, 140, (12, 3, 5, 6), dtype=torch.uint8)
    model = CausalMLP(3).requires_grad_(False)
    content = encode(model, images)
    assert torch.equal(decode(model, content, tuple(images.shape)), images)
    expected = float(model.energy(images).sum()) / math.log(2.0)
    assert 8 * len(content) == pytest.approx(expected, abs=64 + 1e-3 * expected)
    assert not torch.equal(decode(model, content[4:], tuple(images.shape)), images)
