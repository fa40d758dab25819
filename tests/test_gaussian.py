"""Gaussian energies against independent references."""

import math

import pytest
import scipy.fft
import torch

from dualscore.gaussian import StationaryGaussian, WhiteGaussian, dct_matrix


def random_spectrum(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A natural-looking spectrum, falling with frequency, with another colour mix at each frequency."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(height, width, channels, channels, generator=generator, dtype=torch.float64)
    h, w = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    power = 0.5 / (1.0 + h**2 + w**2).double() ** 1.1
    eye = torch.eye(channels, dtype=torch.float64)
    blocks = power[:, :, None, None] * (mix @ mix.mT / channels + 0.1 * eye)
    return blocks.permute(2, 3, 0, 1)


def full_covariance(spectrum: torch.Tensor) -> torch.Tensor:
    """The d×d covariance of a stationary Gaussian, built without the class under test."""
    channels, _, height, width = spectrum.shape
    basis = torch.from_numpy(scipy.fft.idctn(_unit_images(height, width), axes=(1, 2), norm="ortho"))
    basis = basis.reshape(height * width, height * width)  # rows: frequencies
    flat = spectrum.reshape(channels, channels, height * width)
    return torch.einsum("ckf,fp,fq->cpkq", flat, basis, basis).reshape(
        channels * height * width, channels * height * width
    )


def _unit_images(height: int, width: int) -> "torch.Tensor":
    return torch.eye(height * width, dtype=torch.float64).reshape(-1, height, width).numpy()


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_dct_matrix_is_scipys_orthonormal_dct(size: int) -> None:
    signal = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    expected = torch.from_numpy(scipy.fft.dct(signal.numpy(), norm="ortho"))
    assert torch.allclose(dct_matrix(size) @ signal, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 4)])
@pytest.mark.parametrize("t", [0.0, 1e-3, 10.0])
def test_energy_and_whitening_agree_with_the_full_covariance(shape: tuple[int, int, int], t: float) -> None:
    spectrum = random_spectrum(*shape)
    mean = torch.linspace(0.3, 0.6, shape[0], dtype=torch.float64)
    gaussian = StationaryGaussian(mean, spectrum).double()
    gaussian.load_state_dict(_exact_state(mean, spectrum))
    dimension = math.prod(shape)
    covariance = full_covariance(spectrum) + t * torch.eye(dimension, dtype=torch.float64)
    flat_mean = mean[:, None, None].expand(shape).reshape(-1)
    reference = torch.distributions.MultivariateNormal(flat_mean, covariance)
    y = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = gaussian(y, torch.full((5,), t, dtype=torch.float64))
    assert torch.allclose(found.energy, -reference.log_prob(y.flatten(1)), rtol=1e-6)
    # (Σ+t)^(−1/2), the symmetric root, by eigendecomposition of the full matrix.
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.mT
    expected = (y.flatten(1) - flat_mean) @ root
    assert torch.allclose(found.whitened.flatten(1), expected, rtol=1e-5, atol=1e-5)


def _exact_state(mean: torch.Tensor, spectrum: torch.Tensor) -> dict[str, torch.Tensor]:
    values, axes = torch.linalg.eigh(spectrum.permute(2, 3, 0, 1))
    return {"mean": mean, "eigenvalues": values.permute(2, 0, 1), "axes": axes}


def test_the_white_gaussian_is_the_stationary_one_with_a_flat_spectrum() -> None:
    mean, variance = torch.tensor([0.4, 0.5, 0.6]), torch.tensor(0.07)
    flat = (variance * torch.eye(3))[:, :, None, None].expand(3, 3, 8, 8)
    y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 1e-4, 1.0, 1e3])
    white, stationary = WhiteGaussian(mean, variance)(y, t), StationaryGaussian(mean, flat)(y, t)
    assert torch.allclose(white.energy, stationary.energy, rtol=1e-5)
    assert torch.allclose(white.whitened, stationary.whitened, atol=1e-5)


def test_samples_have_the_spectrum_and_the_energy_of_samples_is_the_entropy() -> None:
    gaussian = StationaryGaussian(torch.tensor([0.5] * 3), random_spectrum(3, 8, 8, seed=3))
    x = gaussian.sample(4000, torch.Generator().manual_seed(0))
    coefficients = gaussian.analyze(x - 0.5)
    ratio = coefficients.square().mean(0) / gaussian.eigenvalues
    assert float((ratio - 1).abs().max()) < 6 * math.sqrt(2 / 4000)
    energy = gaussian(x, torch.zeros(4000)).energy.double()
    stderr = float(energy.std()) / math.sqrt(4000)
    assert abs(float(energy.mean() - gaussian.entropy())) < 3 * stderr


def test_impossible_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        StationaryGaussian(torch.zeros(1), random_spectrum(3, 4, 4))
    with pytest.raises(ValueError, match="not positive"):
        StationaryGaussian(torch.zeros(1), torch.zeros(1, 1, 4, 4))
