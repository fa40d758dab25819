"""Noise levels of images, found by energies: unbiased, with right errors, where densities are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dualscore
from dualscore.cli import main
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.noise_level import EVALUATIONS, noise_level
from dualscore.model import ImageModel
from known_gaussian import Known

SIDE = 16
RANGE = (1e-6, 1.0)


def smooth(channels: int = 1) -> StationaryGaussian:
    """Of images of which high frequencies have next to no variance, so that any noise is seen in them."""
    frequency = torch.arange(SIDE)[:, None] ** 2 + torch.arange(SIDE)[None, :] ** 2
    spectrum = 0.5 / (1.0 + frequency) ** 3
    return StationaryGaussian(torch.full((channels,), 0.5), torch.eye(channels)[:, :, None, None] * spectrum)


@pytest.mark.parametrize("decibels", [5.0, 13.0, 30.0, 47.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_are_unbiased_and_their_errors_right(decibels: float, channels: int) -> None:
    gaussian, generator = smooth(channels).double(), torch.Generator().manual_seed(int(decibels))
    t = 10 ** (-decibels / 10)
    count = 600
    clean = gaussian.sample(count, generator)
    noisy = clean + math.sqrt(t) * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    model = Known(gaussian)
    found = noise_level(model, noisy, RANGE)
    assert model.asked == EVALUATIONS == 15
    error = found.psnr - decibels
    assert bool(error.isfinite().all())
    stderr = float(error.std()) / math.sqrt(count)
    assert abs(float(error.mean())) < 4 * stderr + 0.01
    assert stderr < 0.05
    assert float((error / found.psnr_stderr).square().mean().sqrt()) == pytest.approx(1.0, abs=0.12)


def test_the_level_is_where_the_energy_is_least() -> None:
    gaussian, generator = smooth().double(), torch.Generator().manual_seed(0)
    noisy = (
        gaussian.sample(20, generator) + 0.05 * torch.randn(20, 1, SIDE, SIDE, generator=generator).double()
    )
    found = noise_level(Known(gaussian), noisy, RANGE)
    grid = torch.linspace(math.log(1e-4), math.log(0.1), 4000, dtype=torch.float64)
    energies = torch.stack([gaussian(noisy, u.exp().expand(20)).energy for u in grid])
    assert torch.allclose(found.variance.log(), grid[energies.argmin(dim=0)], atol=6e-3)


def test_it_does_not_depend_on_the_other_images() -> None:
    gaussian, generator = smooth().double(), torch.Generator().manual_seed(0)
    noise = torch.randn(5, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    deviations = torch.logspace(-2.5, -0.5, 5, dtype=torch.float64)[:, None, None, None]
    noisy = gaussian.sample(5, generator) + deviations * noise
    together = noise_level(Known(gaussian), noisy, RANGE)
    for place in range(5):
        alone = noise_level(Known(gaussian), noisy[place : place + 1], RANGE)
        assert torch.allclose(alone.variance[0], together.variance[place], rtol=1e-9)


def test_an_image_without_noise_has_no_level_in_the_range() -> None:
    """Its energy falls until the smallest variance."""
    gaussian = smooth().double()
    flat = torch.full((1, 1, SIDE, SIDE), 0.5, dtype=torch.float64)
    found = noise_level(Known(gaussian), flat, RANGE)
    assert bool(found.variance.isnan())
    assert bool(found.psnr_stderr.isnan())


def test_a_model_tells_it_in_decibels() -> None:
    gaussian, generator = smooth(), torch.Generator().manual_seed(0)
    model = ImageModel(Known(gaussian), image_shape=(1, SIDE, SIDE), t_min=1e-6, t_max=10.0)
    noisy = gaussian.sample(3, generator) + 0.1 * torch.randn(3, 1, SIDE, SIDE, generator=generator)
    found = model.noise_level(noisy, batch_size=2)
    assert found.variance.shape == (3,)
    assert torch.allclose(found.psnr, torch.full((3,), 20.0, dtype=torch.float64), atol=2.0)
    first, *_ = str(found).split(", ")
    assert first.endswith(" dB")
    assert float(first.split()[0]) == pytest.approx(float(found.psnr[0]), abs=0.01)


def noisy_photograph(path: Path, decibels: float, size: tuple[int, int] = (64, 48)) -> None:
    """A part of a photograph of scikit-image's, 8-bit, with noise."""
    from skimage import data

    clean = 0.2 + 0.5 * data.camera()[300 : 300 + size[0], 20 : 20 + size[1]] / 255.0  # nothing is cut off
    noise = np.random.default_rng(0).normal(0.0, 10 ** (-decibels / 20), clean.shape)
    Image.fromarray((255 * (clean + noise)).clip(0, 255).round().astype(np.uint8)).save(path)


def test_the_command_tells_the_noise_of_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    noisy_photograph(tmp_path / "in/a.png", 20.0)
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    assert main(["noise", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (row,) = json.loads((tmp_path / "out/noise_levels.json").read_text())["images"]
    assert row["psnr"] == pytest.approx(20.0, abs=1.0)
    assert row["grey_levels"] == pytest.approx(255 * 10 ** (-row["psnr"] / 20), rel=1e-6)
    said = capsys.readouterr().out
    assert "a standard deviation of" in said
    assert "broken.png cannot be decoded" in said


def test_a_model_of_one_size_looks_at_tiles(trained_demo: Path, tmp_path: Path) -> None:
    noisy_photograph(tmp_path / "a.png", 15.0, (40, 33))
    noisy_photograph(tmp_path / "small.png", 15.0, (8, 9))
    run = str(trained_demo / "runs/patches_dual")
    words = [str(tmp_path / "a.png"), str(tmp_path / "small.png")]
    assert main(["noise", run, *words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (row,) = json.loads((tmp_path / "out/noise_levels.json").read_text())["images"]
    assert row["psnr"] == pytest.approx(15.0, abs=5.0)  # after two steps of training


def test_a_denoiser_cannot_tell() -> None:
    from dualscore.energy import Denoiser
    from dualscore.errors import NormalizationError

    model = ImageModel(Denoiser(torch.nn.Identity()), image_shape=(1, 4, 4))
    model.register_buffer("something", torch.zeros(1))
    with pytest.raises(NormalizationError, match="is a denoiser"):
        model.noise_level(torch.zeros(1, 1, 4, 4))


def test_the_boxed_model_tells_it_of_any_size() -> None:
    from skimage import data

    model = dualscore.load("photographs_gray")
    clean = torch.from_numpy(data.camera()[100:170, 150:255] / 255.0).float()[None, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found = model.noise_level(clean + 0.1 * noise)
    assert float(found.psnr) == pytest.approx(20.0, abs=0.5)


@pytest.mark.parametrize("chosen", [0.7, 1.4])
def test_of_two_minima_the_finest_details_choose(chosen: float) -> None:
    """One is near what the details tell; the other one, which a coarse level meets, is deeper by a nat."""
    noisy = 0.5 + 0.1 * torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def two(_: Tensor, t: Tensor) -> Tensor:
        return torch.minimum(
            20.0 * (t / (chosen * 0.01)).log().square(), 20.0 * (t / 10 ** (-6 + 12 / 7)).log().square() - 1.0
        )

    level = noise_level(two, noisy, (1e-6, 1.0))
    assert level.variance.sqrt() == pytest.approx(torch.full((8,), 0.1 * chosen**0.5).double(), rel=0.01)


@pytest.mark.parametrize("shape", [(1, 64), (64, 1)])
def test_lines_have_no_details_to_go_by(shape: tuple[int, int]) -> None:
    gaussian = StationaryGaussian(torch.tensor([0.5]), torch.full((1, 1, *shape), 1e-4))
    generator = torch.Generator().manual_seed(0)
    noisy = gaussian.sample(400, generator)
    noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=generator)
    off = noise_level(Known(gaussian), noisy, (1e-6, 1.0)).psnr - 20.0
    assert float(off.mean()) == pytest.approx(0.0, abs=4 * 0.77 / 20 + 0.05)  # dB; one image's error is 0.77


def test_another_level_as_probable_widens_the_error() -> None:
    """Two levels, two apart in ln t and as likely: whichever is chosen, the error is of that size."""
    noisy = math.exp(-3.5) * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))

    def energy(_: Tensor, t: Tensor) -> Tensor:
        modes = torch.stack([-0.5 * ((t.log() - mode) / 0.4) ** 2 for mode in (-8.0, -6.0)])
        return -torch.logsumexp(modes, dim=0)

    found = noise_level(energy, noisy, (math.exp(-14.0), 1.0))
    assert 1.0 < float(found.log_stderr) < 2.5  # 0.4 by the curvature alone
    one = noise_level(lambda _, t: 0.5 * ((t.log() + 6.0) / 0.4) ** 2, noisy, (math.exp(-14.0), 1.0))
    assert float(one.log_stderr) == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("side", [1, 4])
def test_parts_that_disagree_widen_the_error(side: int) -> None:
    """Of white noise the error is what the curvature says; of noise in blocks that of their number."""

    def split(noisy: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (
            (noisy[:, 0] - 0.5).square() / t[:, None, None] + torch.log(2 * math.pi * t)[:, None, None]
        )

    def energy(noisy: Tensor, t: Tensor) -> Tensor:
        return split(noisy, t).sum(dim=(1, 2))

    white = torch.randn(400, 1, 16 // side, 16 // side, generator=torch.Generator().manual_seed(0))
    noisy = 0.5 + 0.1 * white.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    found, by_curvature = (noise_level(energy, noisy, (1e-6, 1.0), split_) for split_ in (split, None))
    off = found.variance.log() - math.log(0.01)
    exact = math.sqrt(2.0 * side**2 / 256)
    assert float(off.std()) == pytest.approx(exact, rel=0.15)
    told = float(found.log_stderr.square().mean().sqrt())
    assert told == pytest.approx(exact, rel=0.2)
    if side > 1:
        assert float(by_curvature.log_stderr.square().mean().sqrt()) < 0.5 * exact
