"""The causal network: its likelihood is exact, it sees the past alone, and it learns a known source."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dualscore.evaluation.causal import CausalMLP, DiscretizedLogistics, train_causal


def random_levels(*shape: int, levels: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed))


def shaken(channels: int, levels: int = 256) -> CausalMLP:
    """A network whose conditionals differ widely, as a trained one's."""
    model = CausalMLP(channels, levels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def all_pixels(model: CausalMLP, images: Tensor) -> Tensor:
    """−log P of each level given those before it, shape (N, C, H, W)."""
    count, channels, height, width = images.shape
    image, row, column = torch.meshgrid(*(torch.arange(n) for n in (count, height, width)), indexing="ij")
    context = model.context(images, image.flatten(), row.flatten(), column.flatten())
    return model.nats(context).reshape(count, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_every_conditional_sums_to_one(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, means, scales = torch.randn(3, 500, 4, generator=generator, dtype=torch.float64)
    mixture = DiscretizedLogistics(weights.log_softmax(1), 2 * means, 3 * scales - 3, levels)
    found = torch.stack([mixture.log_probability(torch.full((500,), level)) for level in range(levels)])
    assert torch.allclose(found.exp().sum(0), torch.ones(500, dtype=torch.float64), atol=1e-12)


def test_a_probability_is_the_difference_of_two_logistic_functions_and_never_nothing() -> None:
    one = torch.zeros(1, 1, dtype=torch.float64)
    mixture = DiscretizedLogistics(one, one + 0.5, one + math.log(0.02), 256)
    level = torch.tensor([120])
    edges = torch.sigmoid((torch.tensor([120.5, 119.5], dtype=torch.float64) / 255 - 0.5) / 0.02)
    assert float(mixture.log_probability(level).exp()) == pytest.approx(float(edges[0] - edges[1]), rel=1e-10)
    # 500 scales away both are 1 to the last bit.
    far = DiscretizedLogistics(one, one, one + math.log(1e-3), 256)
    exact = -(0.5 - 0.5 / 255) / 1e-3 + math.log(-math.expm1(-1 / 255 / 1e-3))
    assert float(far.log_probability(torch.tensor([127.5]))) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("shape", "levels"), [((1, 1, 2), 6), ((1, 2, 2), 3), ((3, 1, 2), 2)])
def test_all_images_of_a_small_space_together_have_probability_one(
    shape: tuple[int, int, int], levels: int
) -> None:
    images = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
    energy = shaken(shape[0], levels).energy(images)
    assert float(energy.std()) > 0.1  # no uniform distribution
    assert float((-energy).exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_later_is_seen_and_something_earlier_is(channels: int) -> None:
    model = shaken(channels)
    images = random_levels(1, channels, 7, 9)
    before = all_pixels(model, images)
    order = torch.arange(7 * 9 * channels).view(7, 9, channels).permute(2, 0, 1)
    for place in ((0, 0, 0), (channels - 1, 3, 4), (0, 6, 8), (channels // 2, 2, 8)):
        other = images.clone()
        other[(0, *place)] = (other[(0, *place)] + 100) % 256
        changed = all_pixels(model, other)[0] != before[0]
        assert not changed[order < order[place]].any()
        assert changed[place]
        assert changed.sum() > 1 or place == (channels - 1, 6, 8)


def test_no_image_sees_another_and_the_energy_is_the_sum() -> None:
    model = shaken(3)
    images = random_levels(5, 3, 6, 4).to(torch.uint8)
    together = model.energy(images)
    alone = torch.cat([model.energy(image[None]) for image in images])
    assert torch.allclose(together, alone, rtol=1e-5)
    assert torch.allclose(together, all_pixels(model, images).double().sum(dim=(1, 2, 3)), rtol=1e-5)


def autoregression(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of a first-order autoregression on 64 levels, uniform at the left, and −log P of each image."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.arange(65, dtype=torch.float64)
    edges[0], edges[-1] = -math.inf, math.inf
    mean = 32.0 + 0.8 * (torch.arange(64, dtype=torch.float64) - 32.0)
    transition = torch.sigmoid((edges - 0.5 - mean[:, None]) / 1.5).diff(dim=1)
    state = torch.randint(64, (count, size), generator=generator)
    columns, energy = [state], torch.full((count,), size * math.log(64.0), dtype=torch.float64)
    for _ in range(size - 1):
        chances = transition[state]
        state = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(count, size)
        energy -= chances.gather(2, state[..., None])[..., 0].log().sum(dim=1)
        columns.append(state)
    return torch.stack(columns, dim=2)[:, None], energy


def test_a_known_source_is_learned() -> None:
    images, _ = autoregression(2000, 12, seed=0)
    unseen, truth = autoregression(500, 12, seed=1)
    model = train_causal(images, steps=300, seed=0, levels=64)
    gap = float((model.energy(unseen) - truth).mean()) / (144 * math.log(2.0))
    uniform = 6.0 - float(truth.mean()) / (144 * math.log(2.0))
    assert uniform > 2.0  # what there is to learn, in bits/dim
    assert 0.0 < gap < 0.1


def test_training_depends_on_its_seed_alone() -> None:
    images = random_levels(20, 3, 8, 8).to(torch.uint8)
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train_causal(images, steps=3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    with torch.no_grad():
        again = train_causal(images, steps=3, seed=0)
    other = train_causal(images, steps=3, seed=1)
    assert torch.equal(first.energy(images), again.energy(images))
    assert not torch.equal(first.energy(images), other.energy(images))


def test_steps_are_shown_and_weights_counted() -> None:
    seen: list[int] = []

    def watch(steps):  # noqa: ANN001, ANN202
        for step in steps:
            seen.append(step)
            yield step

    model = train_causal(random_levels(2, 1, 4, 4), steps=4, seed=0, watch=watch)
    assert seen == [0, 1, 2, 3]
    assert 44_000 < sum(parameter.numel() for parameter in model.parameters()) < 47_000


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 1, 4, 4), "float32"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"\(B, 1, H, W\)"),
        (torch.full((2, 1, 4, 4), 256), "from 0 to 255, got 256"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), r"\(0, 1, 4, 4\)"),
    ],
)
def test_what_are_no_levels_is_refused(images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CausalMLP(1).energy(images)
