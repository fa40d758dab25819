"""Images drawn from known densities: the same on any number of devices and workers, never the same twice."""

from itertools import islice

import pytest
import torch

from dualscore.assemble import build_datamodule, load_statistics
from dualscore.data.datamodule import ResumableLoader
from dualscore.data.known import KnownDataModule, TrainingDraws, draw_images
from dualscore.errors import DataError
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.images import dequantize, to_pixels
from dualscore.noise import SAMPLING, seeded_generator
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment
from workspace import ROOT


def config(*settings: str, name: str = "texture_mixture") -> ExperimentConfig:
    return load_experiment(name, list(settings), ROOT / "experiments")


def module(*settings: str, name: str = "texture_mixture") -> KnownDataModule:
    made = build_datamodule(config("data.batch_size=16", *settings, name=name))
    assert isinstance(made, KnownDataModule)
    return made


def draws(data: KnownDataModule, streams: range, epoch: int = 0, start: int = 0) -> TrainingDraws:
    return TrainingDraws(data.density, data.quantized, data.batching, streams, epoch, start)


def first(data: KnownDataModule, streams: range, epoch: int = 0, start: int = 0) -> torch.Tensor:
    return next(iter(draws(data, streams, epoch, start))).image


def test_devices_share_what_one_would_draw() -> None:
    data = module()
    whole = first(data, range(8))
    halves = [first(data, range(4)), first(data, range(4, 8))]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, first(data, range(8), epoch=1))
    assert not torch.equal(whole, first(data, range(8), start=1))


def test_an_image_of_an_epoch_has_one_place_whatever_the_devices() -> None:
    data = module()
    halves = [islice(draws(data, part), 3) for part in (range(4), range(4, 8))]
    places = torch.cat([batch.position for half in halves for batch in half])
    assert torch.equal(places.sort().values, torch.arange(3 * 16))


def test_a_resumed_loader_goes_on() -> None:
    data = module()
    loader = ResumableLoader(data)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    again = ResumableLoader(data)
    again.load_state_dict(loader.state_dict())
    expected, found = next(iterator), next(iter(again))
    assert torch.equal(expected.image, found.image)
    assert torch.equal(expected.position, found.position)


@pytest.mark.parametrize("workers", [0, 2])
def test_measured_images_depend_on_their_position_alone(workers: int) -> None:
    data = module()
    alone = list(data.evenly_spaced("val", 150, 64))
    positions = torch.cat([batch.position for batch in alone])
    assert positions.tolist() == list(range(150))
    images = torch.cat([batch.image for batch in alone])
    parts = [list(data.evenly_spaced("val", 150, 40, (rank, 2), workers)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [
        len(data.evenly_spaced("val", 150, 40, (r, 2), workers)) for r in (0, 1)
    ]
    batches = sorted((b for part in parts for b in part), key=lambda b: int(b.position[0]))
    assert torch.equal(torch.cat([b.position for b in batches]), positions)
    assert torch.equal(torch.cat([b.image for b in batches]), images)
    train = next(iter(data.evenly_spaced("train", 64, 64))).image
    assert not torch.equal(train, images[:64])


def test_8_bit_textures_stay_inside_and_floats_are_not_rounded() -> None:
    eight = next(iter(module().evenly_spaced("val", 256, 256))).image
    assert eight.dtype == torch.uint8
    assert eight.shape == (256, 3, 16, 16)
    assert int(eight.min()) > 0
    assert int(eight.max()) <= 255
    floats = next(iter(module(name="gaussian_textures_float").evenly_spaced("val", 64, 64))).image
    assert floats.dtype == torch.float32
    assert torch.equal(to_pixels(floats, 3), floats)
    assert float((floats * 255 - (floats * 255).round()).abs().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("name", ["gaussian_textures", "gaussian_textures_float", "mode_mixture_dual"])
def test_statistics_are_those_of_the_images_as_they_are_trained_on(name: str) -> None:
    statistics = load_statistics(config(name=name))
    data = module(name=name)
    images = torch.cat([b.image for b in data.evenly_spaced("train", 4096, 512)])
    x = to_pixels(images, images.shape[1], torch.float64)
    if data.quantized:
        generator = torch.Generator().manual_seed(0)
        x = dequantize(x, torch.rand(x.shape, generator=generator, dtype=torch.float64))
    gaussian = StationaryGaussian(statistics.mean, statistics.spectrum).double()
    power = gaussian.analyze(x - statistics.mean[:, None, None]).square().mean(dim=0)
    assert torch.allclose(power, gaussian.eigenvalues, rtol=0.12)
    assert torch.allclose(x.mean(dim=(0, 2, 3)), statistics.mean, atol=0.05)
    if data.quantized:  # rounding and dequantizing add the variance of a step each
        exact = data.density.moments()[1].diagonal().mean() + 2 * QUANTIZATION_VARIANCE
        assert float(statistics.pixel_variance) == pytest.approx(float(exact))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.quantized=false"], "data.dequantize: needs data.quantized=true"),
        (["data.density=scale_mixture"], "is of vectors"),
        (["network.kind=radial"], "radial needs data.density"),
        (["data.density=none"], "data.path: is required"),
    ],
)
def test_settings_that_do_not_go_together(settings: list[str], message: str) -> None:
    from dualscore.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        config(*settings)


def test_the_test_split_is_a_stream_of_its_own_and_each_image_is_its_own_photograph() -> None:
    data = module()
    assert data.reported == "test"
    drawn = {split: next(iter(data.evenly_spaced(split, 64, 64))) for split in ("train", "val", "test")}
    for a, b in (("train", "test"), ("val", "test"), ("train", "val")):
        assert not torch.equal(drawn[a].image, drawn[b].image)
    found = data.photographs("test", drawn["test"].position)
    assert torch.equal(found, torch.arange(64))
    with pytest.raises(DataError, match="position 131072 is not one of the 131072 test images"):
        data.photographs("test", torch.tensor([0, 2**17]))


def test_validation_images_are_what_they_were_before_there_was_a_test_split() -> None:
    """Rows that were measured on them stay valid: each split keeps the key of its own random numbers."""
    data = module()
    for split, key in (("train", -1), ("val", -2), ("test", -3)):
        images = next(iter(data.evenly_spaced(split, 64, 64))).image
        generator = seeded_generator(torch.device("cpu"), SAMPLING, key, 0)
        assert torch.equal(images, draw_images(data.density, 64, data.quantized, generator))
