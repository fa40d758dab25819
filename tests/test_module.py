"""The training recipe, piece by piece: each would pass a whole run if it were wrong."""

import inspect
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import dualscore
from dualscore.assemble import build, find_data, load_statistics
from dualscore.data.datamodule import Batch
from dualscore.energy import Energy, Fading
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.images import to_pixels
from dualscore.likelihood.bound import decode, prior_divergence
from dualscore.noise import corrupt, fixed_noise
from dualscore.objective import dual_score_matching
from dualscore.settings.config import ObjectiveConfig, OptimConfig, Schedule
from dualscore.settings.experiment import load_experiment
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.optimizers import schedule
from workspace import ROOT, TINY, Workspace

SETTINGS = [
    *TINY,
    "noise.t_max=1e3",
    "optim.warmup_steps=2",
    "evaluate.psnr=[40,10]",
    "data.dequantize=false",
]


class Place:
    """Stands for a Trainer: which device of how many, and the step."""

    def __init__(self, rank: int = 0, world: int = 1, step: int = 0) -> None:
        self.global_rank, self.world_size, self.global_step = rank, world, step


def make(shards: Path, *overrides: str, place: Place | None = None) -> DualScoreModule:
    settings = [*SETTINGS, f"data.path={shards}", *overrides]
    config = load_experiment("patches_dual", settings, ROOT / "experiments")
    module, _ = build(config)
    module._trainer = place or Place()  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def batch(count: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(image, torch.arange(count), torch.arange(count), torch.full((count,), -1))


def test_the_papers_schedule_halves() -> None:
    factor = schedule(OptimConfig(schedule=Schedule.halving, halve_every=100_000), 1_000_000)
    assert [factor(s) for s in (0, 99_999, 100_000, 250_000, 999_999)] == [1, 1, 0.5, 0.25, 0.5**9]


def test_the_cosine_warms_up_and_ends_at_the_final_rate() -> None:
    factor = schedule(OptimConfig(lr=2e-3, schedule=Schedule.cosine, warmup_steps=100, final_lr=1e-5), 1100)
    assert factor(0) == pytest.approx(0.01)
    assert factor(49) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(1.0)
    assert factor(600) == pytest.approx((1 + 0.005) / 2)
    assert factor(350) == pytest.approx(0.005 + 0.995 * (1 + math.cos(math.pi / 4)) / 2)
    assert factor(1100) == factor(2000) == pytest.approx(0.005)


@pytest.mark.parametrize(("method", "rates"), [("adam", [2e-3, 1.4e-2]), ("soap", [2e-3, 2e-3, 1.4e-2])])
def test_the_offset_learns_faster_and_everything_is_optimised_once(
    demo_shards: Path, method: str, rates: list[float]
) -> None:
    module = make(
        demo_shards,
        f"optim.method={method}",
        "optim.lr=2e-3",
        "optim.offset_lr_factor=7",
        "optim.warmup_steps=0",
    )
    configured: Any = module.configure_optimizers()
    groups = configured["optimizer"].param_groups
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    assert isinstance(module.model, Energy)
    assert module.model.offset is not None
    assert [id(p) for p in groups[-1]["params"]] == [id(module.model.offset.slopes)]
    optimised = [id(p) for group in groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in module.model.parameters())


def test_noise_levels_are_log_uniform_and_new_at_each_step(demo_shards: Path) -> None:
    module = make(demo_shards, "data.batch_size=4096", "noise.t_min=1e-4", "noise.t_max=1e2")
    first, second = module.draw(0, 4096), module.draw(1, 4096)
    decades = first.noise_variance.log10()
    assert float(decades.mean()) == pytest.approx(-1.0, abs=4 * 6 / math.sqrt(12 * 4096))
    assert float(decades.std()) == pytest.approx(6 / math.sqrt(12), rel=0.05)
    assert float(first.flip.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 64)
    assert not torch.equal(first.noise_variance, second.noise_variance)
    assert not torch.equal(first.noise, second.noise)
    assert torch.equal(first.noise, module.draw(0, 4096).noise)
    assert not make(demo_shards, "data.flip=false").draw(0, 16).flip.any()


def test_devices_draw_what_one_would(demo_shards: Path) -> None:
    alone = make(demo_shards, "data.dequantize=true", "objective.level_weight=0.1").draw(5, 64)
    halves = [
        make(demo_shards, "data.dequantize=true", "objective.level_weight=0.1", place=Place(rank, 2)).draw(
            5, 32
        )
        for rank in (0, 1)
    ]
    for together, parts in zip(alone, zip(*halves, strict=True), strict=True):
        assert together is not None
        assert torch.equal(together, torch.cat(parts))


def test_other_levels_are_drawn_behind_what_was_drawn_before(demo_shards: Path) -> None:
    plain, telling = (make(demo_shards, f"objective.level_weight={w}").draw(3, 64) for w in (0, 0.1))
    assert plain.elsewhere is None
    assert telling.elsewhere is not None
    assert len(telling.elsewhere.unique()) > 60
    for one, other in zip(plain[:-1], telling[:-1], strict=True):
        assert one is other is None or torch.equal(one, other)


def test_the_first_steps_of_a_likelihood_see_low_noise_more_often(demo_shards: Path) -> None:
    module = make(demo_shards)
    module.likelihood_steps = 2
    shares = [float((module.draw(step, 64).noise_variance < 1e-5).float().mean()) for step in (1, 2)]
    assert shares == pytest.approx([0.6, math.log(1e-5 / 1e-7) / math.log(1e3 / 1e-7)], abs=2 / 64)
    assert torch.equal(module.draw(1, 64).noise, make(demo_shards).draw(1, 64).noise)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_a_training_step_is_the_objective_on_mirrored_pixels(demo_shards: Path, weight: float) -> None:
    module = make(demo_shards, f"objective.time_weight={weight}", place=Place(step=7))
    draws, stored = module.draw(7, 16), batch()
    assert draws.flip.any()
    assert not draws.flip.all()
    pixels = to_pixels(stored.image, 1)
    mirrored = torch.stack(
        [x[:, :, range(15, -1, -1)] if f else x for x, f in zip(pixels, draws.flip, strict=True)]
    )
    expected = dual_score_matching(module.model, mirrored, draws.noise, draws.noise_variance, weight)
    assert torch.equal(module.training_step(stored, 0), expected.total.mean())


def test_the_average_is_exponential_and_the_normalizer_is_forgotten(demo_shards: Path) -> None:
    module = make(demo_shards, "optim.ema_steps=4")
    assert module.average is not None
    assert module.evaluated is module.average.module
    weight = module.model.get_parameter("network.output.weight")
    still = torch.optim.SGD(module.model.parameters(), lr=0.0)
    by_hand = None
    for step in range(5):
        with torch.no_grad():
            weight.fill_(float(step**2))
        module.log_normalizer.fill_(1.0)
        module.optimizer_step(0, 0, still)
        assert module.log_normalizer.isnan()
        by_hand = float(step**2) if by_hand is None else 0.75 * by_hand + 0.25 * step**2
    averaged = module.evaluated.get_parameter("network.output.weight")
    assert torch.allclose(averaged, torch.full_like(averaged, by_hand or 0.0))
    assert make(demo_shards, "optim.ema_steps=0").average is None


def test_measured_figures_belong_to_their_image_and_level(demo_shards: Path) -> None:
    module, stored = make(demo_shards), batch(5)
    rows = module.validation_step(stored, 0)["rows"]
    assert all(table["position"].tolist() == [0, 1, 2, 3, 4] for table in rows.values())
    pixels = to_pixels(stored.image, 1)
    noise = [fixed_noise(range(5), (1, 16, 16), 0, draw) for draw in range(3)]
    assert torch.allclose(rows["paper"]["energy"], module.evaluated(pixels, torch.zeros(5)))
    t_max = torch.full((5,), 1e3)
    around = module.evaluated(corrupt(pixels, noise[0], t_max), t_max)
    assert torch.allclose(rows["normalizer"]["energy"], around[:, None], atol=1e-2)
    square = noise[0].double().square().sum(dim=(1, 2, 3))
    assert torch.allclose(rows["normalizer"]["noise_square"], square)
    assert rows["one_level"]["level"].tolist() == [0, 1, 0, 1, 0]  # in turn
    variance = torch.tensor([1e-4, 1e-1])[rows["one_level"]["level"]]
    expected = dual_score_matching(module.evaluated, pixels, noise[1], variance)
    assert expected.time is not None
    assert torch.allclose(rows["one_level"]["space"], expected.space.detach())
    assert torch.allclose(rows["one_level"]["time"], expected.time.detach())


def test_validation_bounds_the_likelihood_in_shared_strata(demo_shards: Path) -> None:
    module, stored = make(demo_shards, "trainer.validate_images=8"), batch(8)
    assert module.strata == 4
    rows = module.validation_step(stored, 0)["rows"]
    stratum = rows["one_stratum"]["stratum"]
    assert stratum.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    pixels = to_pixels(stored.image, 1)
    noise = fixed_noise(range(8), (1, 16, 16), 0, 2)
    t0, t1 = (0.5 / 255) ** 2, 1e3
    place = torch.tensor([0.0] * 4 + [0.6180339887] * 4, dtype=torch.float64)
    t = t0 * (t1 / t0) ** ((stratum + place) / 4)
    space = dual_score_matching(module.evaluated, pixels, noise, t.float(), 0.0).space.detach()
    assert torch.allclose(rows["one_stratum"]["stratum_space"], space, rtol=1e-4)
    decoder = decode(module.evaluated, pixels, noise, t0).detach()
    assert torch.allclose(rows["ends"]["decoder"], decoder[:, None])
    assert torch.allclose(rows["ends"]["prior"], prior_divergence(pixels, module.prior, t1)[:, None])


def test_dequantized_training_spreads_every_pixel_over_its_step(demo_shards: Path) -> None:
    settings = ["data.dequantize=true", "data.flip=false"]
    module, plain = (
        make(demo_shards, *settings),
        make(demo_shards, "data.flip=false", "data.dequantize=false"),
    )
    draws = module.draw(0, 16)
    assert draws.dequantize is not None
    assert plain.draw(0, 16).dequantize is None
    assert torch.equal(draws.noise, plain.draw(0, 16).noise)  # the option changes nothing else
    assert torch.equal(draws.noise_variance, plain.draw(0, 16).noise_variance)
    stored = batch()
    pixels = to_pixels(stored.image, 1) + (draws.dequantize - 0.5) / 255
    expected = dual_score_matching(module.model, pixels, draws.noise, draws.noise_variance, 1.0)
    assert torch.equal(module.training_step(stored, 0), expected.total.mean())
    assert float(draws.dequantize.min()) >= 0
    assert float(draws.dequantize.max()) < 1
    assert float(draws.dequantize.mean()) == pytest.approx(0.5, abs=0.02)


def test_stratified_noise_levels_fill_the_range_evenly(demo_shards: Path) -> None:
    module = make(demo_shards, "noise.stratified=true", "noise.t_min=1e-4", "noise.t_max=1e4")
    t = module.draw(0, 64).noise_variance
    stratum = (64 * (t.log10() + 4) / 8).floor().clamp(0, 63)
    assert stratum.tolist() == list(range(64))
    halves = [
        make(demo_shards, "noise.stratified=true", "noise.t_min=1e-4", "noise.t_max=1e4", place=Place(r, 2))
        for r in (0, 1)
    ]
    assert torch.equal(t, torch.cat([half.draw(0, 32).noise_variance for half in halves]))
    assert not torch.equal(t, module.draw(1, 64).noise_variance)


def test_fading_is_what_it_says() -> None:
    t = torch.tensor([0.0, 0.05, 1e3])
    assert torch.allclose(Fading(torch.tensor(0.05))(t), torch.tensor([1.0, 0.5, 0.05 / (0.05 + 1e3)]))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_anchors_statistics_are_those_of_the_training_pixels(demo_shards: Path, channels: int) -> None:
    from scipy.fft import dctn

    from dualscore.data.reader import EvenlySpacedBatches

    config = load_experiment(
        "patches_dual",
        [*SETTINGS, f"data.path={demo_shards}", f"data.channels={channels}"],
        ROOT / "experiments",
    )
    _, manifest = find_data(config)
    statistics = load_statistics(config)
    split = manifest.splits["train"]
    (batch,) = EvenlySpacedBatches(demo_shards, (3, 16, 16), split.shards, split.images, split.images)
    pixels = to_pixels(batch.image, channels, torch.float64)
    assert torch.allclose(statistics.mean, pixels.mean(dim=(0, 2, 3)), atol=1e-4)
    assert float(statistics.pixel_variance) == pytest.approx(
        float((pixels - statistics.mean[:, None, None]).square().mean()) + QUANTIZATION_VARIANCE, rel=1e-3
    )
    y = torch.from_numpy(dctn((pixels - statistics.mean[:, None, None]).numpy(), axes=(2, 3), norm="ortho"))
    measured = torch.einsum("bchw,bkhw->ckhw", y, y) / len(y)
    measured += QUANTIZATION_VARIANCE * torch.eye(channels)[:, :, None, None]
    assert torch.allclose(statistics.spectrum, measured, rtol=0.02, atol=1e-7)


def test_load_takes_the_averaged_weights_and_normalizer(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, f"data.path={demo_shards}", "optim.warmup_steps=0", "optim.ema_steps=50"]
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=6")
    checkpoint = workspace.checkpoint("patches_dual")
    model = dualscore.load(workspace.folder / "runs/patches_dual/checkpoints/last.ckpt")
    name = "network.output.weight"
    raw, averaged = (checkpoint["state_dict"][f"{p}.{name}"] for p in ("model", "average.module"))
    assert not torch.equal(raw, averaged)
    assert torch.equal(model.score_model.get_parameter(name), averaged)
    assert model.log_normalizer == float(checkpoint["state_dict"]["log_normalizer"])


def test_an_experiments_objective_holds_the_losss_own_arguments() -> None:
    """So that a new one needs no line between the settings and the formula."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(dual_score_matching).parameters.items()
        if parameter.default is not parameter.empty and name != "elsewhere"  # drawn, not set
    }
    defaults["likelihood_steps"] = 0  # when it begins, which is no argument
    assert asdict(ObjectiveConfig()) == defaults


def test_no_two_images_of_a_batch_share_noise(demo_shards: Path) -> None:
    """Nor two streams, whose images are drawn by generators of their own."""
    noise = make(demo_shards).draw(3, 64).noise.flatten(1)
    assert len(torch.unique(noise, dim=0)) == 64


CUT = ("data.crops=[4, 8, 16]", "data.batch_size=64", "data.streams=4")


def causal_of(shards: Path, *overrides: str, place: Place | None = None) -> DualScoreModule:
    settings = [*SETTINGS, f"data.path={shards}", "data.dataset=demo", "data.size=16", *CUT, *overrides]
    config = load_experiment("patches_causal", settings, ROOT / "experiments")
    module, _ = build(config)
    module._trainer = place or Place()  # type: ignore[assignment]
    return module


def test_steps_see_squares_of_each_side_in_turn_and_as_many_pixels(demo_shards: Path) -> None:
    module = causal_of(demo_shards)
    pixels = module.pixels(batch(64).image)
    for step, side in enumerate((4, 8, 16, 4, 8)):
        found = module._cut(pixels, step)
        assert found.shape == (64 * 16 // side**2, 1, side, side)
        assert torch.equal(module._cut(pixels, step), found)
        each = 64 * 16 // side**2 // 4  # of a stream's sixteen images
        for number, square in enumerate(found):
            image = pixels[16 * (number // each) + number % each, 0]
            windows = image.unfold(0, side, 1).unfold(1, side, 1)
            assert bool((windows == square[0]).all(dim=(2, 3)).any())
    assert not torch.equal(module._cut(pixels, 0), module._cut(pixels, 3))


def test_squares_are_the_same_on_any_number_of_devices(demo_shards: Path) -> None:
    pixels = causal_of(demo_shards).pixels(batch(64).image)
    alone = causal_of(demo_shards)._cut(pixels, 1)
    two = [
        causal_of(demo_shards, place=Place(rank, 2))._cut(pixels[32 * rank : 32 * rank + 32], 1)
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(two), alone)


def test_a_step_learns_from_squares(demo_shards: Path) -> None:
    module = causal_of(demo_shards, place=Place(step=1))
    loss = module.training_step(batch(64), 0)
    assert loss.isfinite()
    assert module.last_noise_variance.shape == (16,)
    whole = causal_of(demo_shards, "data.crops=[]", place=Place(step=1)).training_step(batch(64), 0)
    assert not torch.equal(loss, whole)
