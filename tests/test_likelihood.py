"""Units, the paper's protocol, and the figures gathered over images."""

import math

import pytest
import torch

from dualscore.densities import GaussianMixture
from dualscore.evaluation.fitted_yardsticks import FullGaussian
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.images import dequantize, to_gray, to_pixels
from dualscore.likelihood import (
    Estimate,
    bits,
    bits_per_dim,
    decibels_per_dim,
    dequantized_bits_per_dim,
    log_normalizer,
    mean,
    noise_entropy,
    paper_bits_per_dim,
)
from dualscore.measuring.estimators import paper
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.row_figures import level_figures, shared_bound
from dualscore.measuring.subject import Rows, Subject
from dualscore.training.callbacks.validation import joined
from test_gaussian import random_spectrum


def gathered(rows: Rows, *, parts: tuple[int, ...]) -> Rows:
    """Rows that came in uneven batches."""
    cut = {name: values.split(list(parts)) for name, values in rows.items()}
    batches = [{"rows": {name: cut[name][place] for name in rows}} for place in range(len(parts))]
    return joined(batches)["rows"]


def test_uniform_noise_costs_eight_bits() -> None:
    """The density of uniform pixels on [0, 1] is 1, so U = 0."""
    energy = torch.tensor([0.0, -3072 * math.log(2)], dtype=torch.float64)
    assert bits_per_dim(energy, 3072).tolist() == pytest.approx([8.0, 7.0])
    # A cell of width 1/255 in each pixel, of density 1.
    assert dequantized_bits_per_dim(energy, 3072)[0] == pytest.approx(math.log2(255))


def test_the_paper_protocol_removes_any_constant_and_finds_log_z() -> None:
    d, t_max, n = 48, 1e3, 500
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    clean = 30.0 + torch.randn(n, generator=generator, dtype=torch.float64)
    square = z.square().sum(1)
    noisy = 0.5 * square + d / 2 * math.log(2 * math.pi * t_max)
    values = []
    for constant in (0.0, 1e4):
        log_z = log_normalizer(noisy + constant, square, d, noise_entropy(d, t_max))
        # The noise's own fluctuations, √(d/2n) = 0.2 nats, are gone.
        assert log_z.value == pytest.approx(-constant, abs=1e-6)
        assert log_z.stderr < 1e-6
        values.append(paper_bits_per_dim(clean + constant, log_z, d))
    assert values[0].value == pytest.approx(values[1].value)
    truth = 8 + 30 / (d * math.log(2))
    assert abs(values[0].value - truth) < 3 * values[0].stderr
    assert values[0].stderr == pytest.approx(math.sqrt(1 / n) / (d * math.log(2)), rel=0.1)


def test_log_zs_error_is_part_of_the_figures() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy, square = torch.randn(100, generator=generator), torch.zeros(100)
    log_z = log_normalizer(noisy, square, 10, noise_entropy(10, 1e3))
    assert log_z.stderr == pytest.approx(float(noisy.double().std()) / 10)
    flat = paper_bits_per_dim(torch.zeros(50), log_z, 10)
    assert flat.stderr == pytest.approx(log_z.stderr / (10 * math.log(2)))


def test_figures_that_cannot_be_given_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        mean(torch.zeros(1))
    with pytest.raises(ValueError, match="2 of 5 values are not finite"):
        mean(torch.tensor([0.0, math.nan, 1.0, math.inf, 2.0]))


def test_sums_and_differences_of_independent_figures() -> None:
    a, b = Estimate(3.0, 0.3), Estimate(1.0, 0.4)
    assert (a + b, a - b) == (Estimate(4.0, 0.5), Estimate(2.0, 0.5))
    assert bits(a, 10).stderr == pytest.approx(0.3 / (10 * math.log(2)))
    assert (a * -2.0).stderr == pytest.approx(0.6)
    assert str(Estimate(3.9141, 0.0149)) == "3.914 ± 0.015"


def test_one_decibel_a_dimension_is_a_third_of_a_bit() -> None:
    nats = 100 * math.log(10) / 10
    assert decibels_per_dim(nats, 100) == pytest.approx(1.0)
    assert bits(nats, 100) == pytest.approx(0.332, abs=5e-4)


def test_noise_entropy_is_the_gaussians() -> None:
    normal = torch.distributions.Normal(0.0, math.sqrt(7.0))
    assert noise_entropy(5, 7.0) == pytest.approx(5 * float(normal.entropy()))


def test_energy_figures_are_the_papers_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, around, square = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    clean, around, square = 100 * clean, 7000 + around, square.square()
    prior = StationaryGaussian(torch.tensor([0.5]), torch.full((1, 1, 3, 4), 1e-9)).double()
    model = GaussianMixture([1.0], [prior], (1, 3, 4))
    subject = Subject(model, prior, None, quantized=True, dequantize=False, t_range=(1e-3, 1e3), seed=0)
    columns = {"position": torch.arange(40), "energy": clean}
    ends = {"energy": (around + 0.5 * square)[:, None], "noise_square": square}
    parts = (7, 1, 32)
    rows = {"paper": gathered(columns, parts=parts), "normalizer": gathered(ends, parts=parts)}
    measured = Measured(subject, 12, Grid(1e-3, 1e3, 4), [], rows=rows)
    log_z = log_normalizer(around, torch.zeros(40), 12, noise_entropy(12, 1e3))
    assert measured.log_z.value == pytest.approx(log_z.value)
    assert measured.log_z.stderr == pytest.approx(log_z.stderr)
    expected = paper_bits_per_dim(clean, log_z, 12)
    found = measured.mean(paper(measured).bits, rows["paper"]["position"]) + measured.shared
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr)


def test_bound_figures_add_up_the_strata() -> None:
    ends = torch.tensor([1.0, 2.0, 3.0, 6.0])
    rows = {
        "position": torch.arange(4),
        "stratum": torch.tensor([0, 1, 0, 1]),
        "stratum_space": torch.tensor([0.2, 0.6, 0.4, 1.0]),
        "decoder": 0.75 * ends[:, None],
        "prior": 0.25 * ends[:, None],
    }
    found = shared_bound(gathered(rows, parts=(1, 3)), 1.5, 10, None)
    nats = 3.0 + 0.5 * 10 * 1.5 * (0.3 + 0.8)
    assert found.value == pytest.approx(nats / (10 * math.log(2)))
    # What each image moves the sum by, 2 · 7.5 times its stratum's deviation and its own ends.
    moves = torch.tensor([1.0 - 1.5, 2.0 - 3.0, 3.0 + 1.5, 6.0 + 3.0])
    assert found.stderr == pytest.approx(float(moves.std()) / 2 / (10 * math.log(2)))
    # The same of two photographs, of which either has an image in each stratum: all moves together.
    groups = torch.tensor([0, 0, 1, 1])
    clustered = shared_bound(rows, 1.5, 10, groups)
    errors = [7.5 * 0.1, 7.5 * 0.2, 0.5 * (4.5 - 1.5)]
    assert clustered.value == pytest.approx(found.value)
    assert clustered.stderr == pytest.approx(sum(errors) / (10 * math.log(2)))
    assert clustered.groups == 2


def test_level_figures_turn_losses_into_decibels_and_dimensions() -> None:
    rows = {
        "position": torch.arange(6),
        "level": torch.tensor([0, 0, 3, 2, 2, 2]),
        "space": torch.tensor([0.2, 0.3, 0.5, 0.01, 0.02, 0.03]),
        "time": torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 8.0]),
    }
    low, high, _ = level_figures(gathered(rows, parts=(1, 4, 1)), [1e-2, 1.0, 10.0, 100.0], 100)
    assert (low.noise_variance, low.images, low.space_loss, low.time_loss) == (
        1e-2,
        2,
        pytest.approx(0.25),
        2.0,
    )
    assert low.psnr_in == pytest.approx(20.0)
    assert low.psnr_out == pytest.approx(20 - 10 * math.log10(0.25))  # mean squared error t · loss
    assert low.effective_dimension == pytest.approx(25.0)
    # No image is at the second level, and one alone at the last: neither has a figure.
    assert (high.noise_variance, high.images, high.psnr_in) == (10.0, 3, pytest.approx(-10.0))
    assert (high.space_loss, high.time_loss) == (pytest.approx(0.02), pytest.approx(6.0))
    del rows["time"]
    assert [level.time_loss for level in level_figures(rows, [1e-2, 1.0, 10.0], 100)] == [None, None]


def test_rows_are_gathered_in_double_precision_and_in_order() -> None:
    rows = {"position": torch.arange(9) + 2**40, "ends": torch.rand(9, 2), "c": torch.rand(9)}
    found = gathered(rows, parts=(2, 6, 1))
    assert found["position"].tolist() == rows["position"].tolist()
    assert found["position"].dtype == torch.int64
    for name in ("ends", "c"):
        assert found[name].dtype == torch.float64
        assert torch.equal(found[name], rows[name].double())
    sizes = ({"one": 2, "two": 1}, {"one": 1, "two": 3})
    batches = [{stage: {"a": torch.ones(size)} for stage, size in of.items()} for of in sizes]
    assert {stage: len(table["a"]) for stage, table in joined(batches).items()} == {"one": 3, "two": 4}


def test_gray_is_pillows_gray() -> None:
    import numpy as np
    from PIL import Image

    from fakes import real_images

    colour = real_images(20, 16)
    expected = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in colour]
    assert np.array_equal(to_gray(torch.from_numpy(colour))[:, 0].numpy(), np.stack(expected))
    pixels = to_pixels(torch.from_numpy(colour), 1)
    assert pixels.shape == (20, 1, 16, 16)
    assert float(pixels.max()) <= 1.0


def test_gaussian_baselines_reach_the_entropy_of_gaussian_textures() -> None:
    """8-bit Gaussian images: both fits must cost the entropy of the dequantized texture."""
    spectrum = random_spectrum(1, 8, 8) * 0.02
    truth = StationaryGaussian(torch.tensor([0.5]), spectrum)
    x = truth.sample(6000, torch.Generator().manual_seed(0))
    image = (x * 255).round().clamp(0, 255).to(torch.uint8)
    dequantized = spectrum + QUANTIZATION_VARIANCE * torch.eye(1)[:, :, None, None]
    fitted = StationaryGaussian(torch.tensor([0.5]), dequantized).double()
    exact = float(dequantized_bits_per_dim(fitted.entropy(), 64))
    full = FullGaussian(64)
    for part in image[:4000].split(1000):
        full.add(to_pixels(part, 1))
    full.fit()
    held_out = to_pixels(image[4000:], 1).double()
    spread = torch.rand(held_out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    held_out = dequantize(held_out, spread)
    no_noise = torch.zeros(len(held_out), dtype=torch.float64)
    stationary = dequantized_bits_per_dim(fitted(held_out, no_noise).energy, 64)
    assert float(stationary.mean()) == pytest.approx(exact, abs=0.02)
    # 64·65/2 numbers fitted on 4000 images cost a little: about d/(4N ln 2)·(d+3)/d a dimension.
    found = float(dequantized_bits_per_dim(full.energy(held_out), 64).mean())
    assert found == pytest.approx(exact + 64 / (4 * 4000 * math.log(2)), abs=0.02)


def test_the_full_gaussian_is_the_sample_mean_and_covariance() -> None:
    x = torch.rand(50, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = FullGaussian(6)
    full.add(x[:20])
    full.add(x[20:])
    full.fit()
    flat = x.flatten(1)
    covariance = torch.cov(flat.mT, correction=0) + QUANTIZATION_VARIANCE * torch.eye(6, dtype=torch.float64)
    reference = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    assert torch.allclose(full.energy(x), -reference.log_prob(flat))
