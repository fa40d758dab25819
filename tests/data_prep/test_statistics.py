"""Statistics against direct computations on all images at once."""

from pathlib import Path

import numpy as np
from scipy.fft import dct

from data_prep.statistics import Sums
from dualscore.data.shards import Manifest, load_spectrum
from fakes import real_images, write_official_imagenet
from prep_helpers import build, read_split


def test_manifest_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    train, *_ = write_official_imagenet(tmp_path / "src", 32, 94, 20)
    build("imagenet32", tmp_path / "out", src=tmp_path / "src", workers=2, images_per_shard=13)
    manifest = Manifest.load(tmp_path / "out")
    pixels = train / 255
    assert manifest.statistics.images == 90
    np.testing.assert_allclose(manifest.statistics.pixel_mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(manifest.statistics.pixel_variance, pixels.var(axis=(0, 2, 3)), rtol=1e-12)

    centred = pixels - pixels.mean(axis=(0, 2, 3), keepdims=True)
    matrix = dct(np.eye(32), axis=0, norm="ortho")
    coefficients = matrix @ centred @ matrix.T
    expected = np.einsum("niyx,njyx->ijyx", coefficients, coefficients) / 90
    spectrum = load_spectrum(tmp_path / "out", manifest)
    assert spectrum.shape == (3, 3, 32, 32)
    assert spectrum.dtype == np.float64
    np.testing.assert_allclose(spectrum, expected, atol=1e-11)
    # Parseval: the mean square over frequencies is the pixel variance
    np.testing.assert_allclose(
        np.einsum("iiyx->i", spectrum) / 32**2, manifest.statistics.pixel_variance, rtol=1e-12
    )


def test_one_channel() -> None:
    images = real_images(300, 16)[:, :1]
    sums = Sums.zeros((1, 16, 16))
    sums.add(images)
    mean, variance = sums.mean_and_variance()
    np.testing.assert_allclose(mean, [images.mean() / 255], rtol=1e-13)
    np.testing.assert_allclose(variance, [images.var() / 255**2], rtol=1e-12)
    assert sums.spectrum().shape == (1, 1, 16, 16)


def test_merged_sums_are_those_of_all_images() -> None:
    images = real_images(600, 16)
    whole = Sums.zeros((3, 16, 16))
    whole.add(images)
    merged = Sums.zeros((3, 16, 16))
    for part in (images[:7], images[7:300], images[300:]):
        sums = Sums.zeros((3, 16, 16))
        sums.add(part)
        merged.merge(sums)
    assert merged.mean_and_variance() == whole.mean_and_variance()  # exact
    np.testing.assert_allclose(merged.spectrum(), whole.spectrum(), rtol=1e-9, atol=1e-13)


def test_statistics_come_from_the_training_split(tmp_path: Path) -> None:
    build("demo", tmp_path / "out", size=64)
    mean = Manifest.load(tmp_path / "out").statistics.pixel_mean
    np.testing.assert_allclose(mean, read_split(tmp_path / "out", "train").mean(axis=(0, 2, 3)) / 255)
    for split in ("val", "test"):
        other = read_split(tmp_path / "out", split).mean(axis=(0, 2, 3)) / 255
        assert np.abs(other - mean).max() > 0.01
