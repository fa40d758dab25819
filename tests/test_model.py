"""The model as its users hold it."""

import math
from pathlib import Path

import pytest
import torch

import dualscore
from dualscore.densities import gaussian_textures
from dualscore.energy import Denoiser, Energy, Fading
from dualscore.errors import CheckpointError, NormalizationError, ScoreError
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.networks import LogEmbedding, RadialEnergy, UNet
from test_gaussian import random_spectrum


def energy() -> Energy:
    torch.manual_seed(0)
    gaussian = StationaryGaussian(torch.tensor([0.5]), 0.1 * random_spectrum(1, 8, 8))
    network = UNet(1, LogEmbedding(), width=4, scales=1, layers=2)
    return Energy(network, gaussian, [gaussian], None, Fading(torch.tensor(0.05)))


def images(count: int = 10) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def model(log_normalizer: float | None = 3.0) -> ImageModel:
    return ImageModel(energy(), image_shape=(1, 8, 8), log_normalizer=log_normalizer).eval()


def test_batches_do_not_change_anything() -> None:
    m, x = model(), images()
    t = torch.linspace(0, 1, 10)
    assert torch.allclose(m.energy(x, t, batch_size=3), m.energy(x, t))
    assert torch.allclose(m.denoise(x, t, batch_size=3), m.denoise(x, t), atol=1e-6)
    assert torch.allclose(m.bits_per_dim(x, batch_size=4), m.bits_per_dim(x))
    assert m.energy(x[:0]).shape == (0,)


def test_log_probabilities_are_normalized_energies() -> None:
    m, x = model(), images()
    assert torch.allclose(m.log_prob(x), -(m.energy(x, 0.0) + 3.0))
    assert torch.allclose(m.bits_per_dim(x), 8 - m.log_prob(x) / (64 * math.log(2)))
    assert torch.allclose(m.energy(x, 0.1), m.energy(x, torch.full((10,), 0.1)))


def test_denoising_follows_the_energys_gradient() -> None:
    m, x = model(), images()
    assert torch.allclose(m.denoise(x, 0.0), x)
    y = x.clone().requires_grad_()
    t = torch.full((10,), 0.2)
    (gradient,) = torch.autograd.grad(m.score_model(y, t).sum(), y)
    assert torch.allclose(m.denoise(x, 0.2), x - 0.2 * gradient, atol=1e-6)
    assert not m.denoise(x, 0.2).requires_grad


def test_a_known_density_is_a_model_though_it_has_no_parameters() -> None:
    density = gaussian_textures((1, 8, 8))
    m = ImageModel(density, image_shape=(1, 8, 8), log_normalizer=0.0)
    x = density.sample(4, torch.Generator().manual_seed(0)).clamp(0, 1)
    assert torch.equal(m.log_prob(x), -density(x, torch.zeros(4)))
    assert m.denoise(x, 0.01).shape == x.shape


def test_an_unknown_normalization_is_said_and_can_be_estimated() -> None:
    for unknown in (None, math.nan):
        m = model(unknown)
        with pytest.raises(NormalizationError, match=r"model.normalize\(images\)"):
            m.log_prob(images())
        with pytest.raises(NormalizationError):
            m.bits_per_dim(images())
    x = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    # The anchored energy is normalized by construction, so its log Z is near 0.
    assert abs(m.normalize(x)) < 4 * math.sqrt(32 / 2000)
    assert m.log_prob(images()).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (torch.rand(2, 3, 8, 8), r"shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (torch.rand(1, 8, 8), "shape"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating-point"),
        (255 * torch.rand(2, 1, 8, 8), r"pixels in \[0, 1\]"),
        (torch.full((2, 1, 8, 8), math.nan), r"pixels in \[0, 1\]"),
    ],
)
def test_impossible_images_are_refused(wrong: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        model().log_prob(wrong)


def test_negative_noise_variances_are_refused() -> None:
    with pytest.raises(ValueError, match="must be ≥ 0"):
        model().energy(images(), -1.0)
    with pytest.raises(ValueError, match="must be ≥ 0"):
        model().denoise(images(), math.nan)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (5, 2)])
def test_noise_variances_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a number or one an image"):
        model().energy(images(), torch.ones(shape))


def test_a_denoiser_has_no_likelihood() -> None:
    m = ImageModel(Denoiser(UNet(1, LogEmbedding(), width=4, scales=1, layers=2)), log_normalizer=0.0)
    assert m.denoise(images(), 0.1).shape == (10, 1, 8, 8)
    for method in (m.energy, m.log_prob, m.bits_per_dim, m.normalize):
        with pytest.raises(NormalizationError, match="denoiser"):
            method(images())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_checkpoint_is_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        dualscore.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    torch.save({"dualscore": {"format": 99}, "state_dict": {}}, tmp_path / "b.ckpt")
    torch.save([1, 2], tmp_path / "c.ckpt")
    torch.save({"dualscore": Path("code")}, tmp_path / "d.ckpt")
    for name in "abcd":
        with pytest.raises(CheckpointError, match="not a dualscore checkpoint"):
            dualscore.load(tmp_path / f"{name}.ckpt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        dualscore.load(tmp_path / "missing.ckpt")


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    described = {"format": 2, "config": {"network": {"heads": 8}}, "release": "x"}
    for number, content in enumerate(
        [{"dualscore": described, "state_dict": {}}, {"dualscore": {"format": 2}}]
    ):
        torch.save(content, tmp_path / f"{number}.ckpt")
        with pytest.raises(CheckpointError, match="do not belong to this version") as caught:
            dualscore.load(tmp_path / f"{number}.ckpt")
        assert "\n" not in str(caught.value)


def test_an_energy_map_sums_to_the_energy_where_there_is_one() -> None:
    m, x = model(), images()
    found = m.energy_map(x, 0.1, batch_size=3)
    assert found.shape == (10, 8, 8)
    assert torch.allclose(found.sum(dim=(1, 2)), m.energy(x, 0.1), rtol=1e-5)
    radial = ImageModel(RadialEnergy(torch.zeros(2, 1), 1e-2, 1.0, hidden=4))
    with pytest.raises(ScoreError, match="cannot be split over pixels"):
        radial.energy_map(x)
    with pytest.raises(NormalizationError, match="denoiser"):
        ImageModel(Denoiser(UNet(1, LogEmbedding(), width=4, scales=1, layers=2))).energy_map(x)
