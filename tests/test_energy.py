"""Energies: gradients against finite differences, the parts one by one, the anchor's exactness."""

import math
from collections.abc import Callable

import pytest
import torch

from dualscore.energy import Denoiser, Energy, Fading, LevelPhase, SlopeOffset
from dualscore.gaussian import StationaryGaussian, WhiteGaussian
from dualscore.likelihood import log_normalizer, noise_entropy, paper_bits_per_dim
from dualscore.networks import LinearEmbedding, LocalSizes, LogEmbedding, PixelNorm, UNet
from dualscore.networks.local_sizes import log_sizes
from test_gaussian import random_spectrum

MEAN = torch.tensor([0.4, 0.5, 0.6])
VARIANCE = torch.tensor(0.05)


def network(channels: int = 3, output_gain: float = 1.0) -> UNet:
    torch.manual_seed(1)
    return UNet(channels, LogEmbedding(), width=4, scales=2, layers=2, output_gain=output_gain)


def anchored(output_gain: float = 1.0, slope: float = 0.3) -> Energy:
    gaussian = StationaryGaussian(MEAN, random_spectrum(3, 8, 8))
    offset = SlopeOffset(1e-9, 1e3)
    with torch.no_grad():
        offset.slopes.copy_(slope * torch.sin(torch.arange(63.0)))
    return Energy(network(3, output_gain), gaussian, [gaussian], offset, Fading(VARIANCE))


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def with_potential() -> Energy:
    """The recipe's energy: two views of the image, normalized pixel by pixel, another map summed."""
    torch.manual_seed(1)
    f = UNet(6, LogEmbedding(), width=4, scales=2, layers=2, norm=PixelNorm, residual=True, outputs=9)
    gaussian = StationaryGaussian(MEAN, random_spectrum(3, 8, 8))
    return Energy(f, gaussian, [gaussian, white()], anchored().offset, Fading(VARIANCE))


def with_phase() -> Energy:
    torch.manual_seed(1)
    f = UNet(9, LogEmbedding(), width=4, scales=2, layers=2, norm=PixelNorm, residual=True)
    return Energy(f, white(), [white()], fading=Fading(VARIANCE), phase=LevelPhase())


def white() -> WhiteGaussian:
    return WhiteGaussian(MEAN, VARIANCE)


def scaled(fading: bool) -> Energy:
    gaussian = white()
    return Energy(network(), gaussian, [gaussian], None, Fading(VARIANCE) if fading else None)


def with_sizes() -> Energy:
    """Local sizes that say something: as they begin, they are nothing."""
    torch.manual_seed(1)
    sizes, gaussian = LocalSizes(3, hidden=8), anchored().whiteners[0]
    with torch.no_grad():
        sizes.last.weight.normal_(std=0.3)
    return Energy(network(), gaussian, [gaussian], fading=Fading(VARIANCE), sizes=sizes)


VARIANTS = {
    "paper": lambda: Energy(network()),
    "white anchor, raw input": lambda: Energy(network(), anchor=white()),
    "white anchor, scaled input": lambda: scaled(fading=False),
    "white anchor, scaled input, fading": lambda: scaled(fading=True),
    "offset alone": lambda: Energy(network(), offset=anchored().offset),
    "all parts": anchored,
    "all parts, potential": with_potential,
    "grey levels": with_phase,
    "local sizes": with_sizes,
}


MAPPED = VARIANTS | {
    "white anchor, whitened and scaled input": lambda: Energy(
        network(6), white(), [anchored().whiteners[0], white()]
    ),
    "no anchor, whitened input": lambda: Energy(network(), None, anchored().whiteners),
    "no anchor, fading": lambda: Energy(network(), fading=Fading(VARIANCE)),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("t", [1e-6, 1e-4, 0.3, 50.0])
def test_gradients_are_the_derivatives_of_the_energy(name: str, t: float) -> None:
    energy = VARIANTS[name]().double()
    y, times = images().double(), torch.full((3,), t, dtype=torch.float64)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = energy.gradients(y, times)
    assert found.noise_variance is not None
    step = 1e-5 * math.sqrt(t)
    slope = (energy(y + step * direction, times) - energy(y - step * direction, times)) / (2 * step)
    assert torch.allclose((found.image * direction).sum(dim=(1, 2, 3)), slope, rtol=1e-5, atol=1e-5)
    rise = (energy(y, times * (1 + 1e-6)) - energy(y, times * (1 - 1e-6))) / (2e-6 * t)
    assert torch.allclose(found.noise_variance, rise, rtol=1e-4, atol=1e-5)


def test_without_its_parts_the_energy_is_half_the_inner_product() -> None:
    f, y, t = network(), images(), torch.tensor([0.0, 0.1, 10.0])
    assert torch.equal(Energy(f)(y, t), 0.5 * (y * f(y, t)).sum(dim=(1, 2, 3)))


def test_each_part_adds_what_it_says() -> None:
    f, y, t = network(), images(), torch.tensor([0.0, 0.1, 10.0])
    offset = anchored().offset
    assert offset is not None
    fade = Fading(VARIANCE)
    gaussian = white()
    said = gaussian(y, t)
    residual = 0.5 * (said.whitened * f(said.whitened, t)).sum(dim=(1, 2, 3))
    expected = said.energy + y[0].numel() * offset(t) + fade(t) * residual
    assert torch.allclose(Energy(f, gaussian, [gaussian], offset, fade)(y, t), expected, rtol=1e-6)
    raw = 0.5 * (y * f(y, t)).sum(dim=(1, 2, 3))
    assert torch.allclose(Energy(f, anchor=gaussian)(y, t), said.energy + raw, rtol=1e-6)


def test_the_potential_is_the_sum_of_the_second_map() -> None:
    energy, y, t = with_potential(), images(), torch.tensor([0.0, 0.1, 10.0])
    assert isinstance(energy.anchor, StationaryGaussian)
    assert energy.offset is not None
    said = energy.anchor(y, t)
    seen = torch.cat([said.whitened, white()(y, t).whitened], dim=1)
    maps = energy.network(seen, t)
    half_product = 0.5 * (seen * maps[:, :6]).sum(dim=(1, 2, 3))
    potential = maps[:, 6:].sum(dim=(1, 2, 3))
    residual = Fading(VARIANCE)(t) * (half_product + potential)
    expected = said.energy + y[0].numel() * energy.offset(t) + residual
    assert torch.allclose(energy(y, t), expected, rtol=1e-6)
    assert float(potential.abs().min()) > 1e-3


def test_local_sizes_begin_as_nothing_and_are_added_faded() -> None:
    energy, y, t = with_sizes(), images(), torch.tensor([0.0, 0.1, 10.0])
    assert isinstance(energy.sizes, LocalSizes)
    whitened = energy.whiteners[0](y, t).whitened
    without = Energy(energy.network, energy.anchor, energy.whiteners, fading=energy.fading)
    added = Fading(VARIANCE)(t) * energy.sizes(whitened, t).sum(dim=(1, 2, 3))
    assert float(added.abs().min()) > 1e-3
    torch.testing.assert_close(energy(y, t), without(y, t) + added)
    assert not LocalSizes(3)(whitened, t).any()


@pytest.mark.parametrize("side", [1, 3, 7])
def test_log_sizes_are_of_the_pixels_that_are_there(side: int) -> None:
    """At a corner too, where most of a square lies outside; contrast moves all of them alike."""
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = log_sizes(image)[:, [1, 3, 7].index(side), 0, 0]
    corner = image[:, 0, : side // 2 + 1, : side // 2 + 1].square().mean(dim=(1, 2))
    torch.testing.assert_close(found, torch.log(corner + 1e-4))
    louder = log_sizes(1e3 * image) - log_sizes(1e2 * image)
    torch.testing.assert_close(louder, torch.full_like(louder, 2 * math.log(10)), rtol=0.03, atol=0)


def test_the_phase_repeats_with_the_grey_levels_and_is_the_mean_over_the_noise() -> None:
    phase, y = LevelPhase(), torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([1.5e-7], dtype=torch.float64)
    seen = phase(y, t)
    assert seen.shape == (1, 2, 2, 3)
    assert torch.allclose(phase(y + 7 / 255, t), seen, atol=1e-9)
    assert torch.allclose(phase(y.round(), torch.zeros_like(t))[0, 0], torch.ones(2, 3, dtype=torch.float64))
    noise = torch.randn((200_000, 1, 2, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = phase(y + t.sqrt() * noise, torch.zeros_like(t)).mean(dim=0)
    assert torch.allclose(exact, seen[0], atol=0.006)
    assert float(phase(y, torch.tensor([1e-4])).abs().max()) == 0.0


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.3, 50.0])
def test_the_map_of_an_energy_sums_to_it(name: str, t: float) -> None:
    energy, y = MAPPED[name]().double(), images().double()
    times = torch.full((3,), t, dtype=torch.float64)
    found = energy.energy_map(y, times)
    assert found.shape == (3, 8, 8)
    assert torch.allclose(found.sum(dim=(1, 2)), energy(y, times), rtol=1e-9, atol=1e-9)


def test_a_map_shows_where_the_energy_is() -> None:
    """An outlier in an image that the anchor finds likely; without a network, the whitened square alone."""
    gaussian = white().double()
    energy = Energy(network(output_gain=0.0), gaussian, [gaussian], anchored().offset).double()
    y = MEAN[:, None, None].expand(1, 3, 8, 8).double().clone()
    y[0, 1, 2, 5] += 1.0
    t = torch.tensor([0.2], dtype=torch.float64)
    found = energy.energy_map(y, t)[0]
    assert energy.offset is not None
    even = 1.5 * math.log(2 * math.pi * 0.25) + 3 * float(energy.offset(t))
    assert float(found[2, 5]) == pytest.approx(even + 0.5 / 0.25, rel=1e-6)
    elsewhere = torch.ones(8, 8, dtype=torch.bool)
    elsewhere[2, 5] = False
    assert torch.allclose(found[elsewhere], torch.tensor(even, dtype=torch.float64), rtol=1e-6)


def test_whitening_leaves_an_outlier_where_it_was() -> None:
    spectrum = 0.01 + 1.0 / (1 + torch.arange(16.0)[:, None] + torch.arange(16.0)) ** 2
    gaussian = StationaryGaussian(torch.tensor([0.5]), spectrum[None, None])
    energy = Energy(network(1, output_gain=0.0), gaussian, [gaussian])
    y = torch.full((1, 1, 16, 16), 0.5)
    y[0, 0, 4, 11] += 1.0
    found = energy.energy_map(y, torch.zeros(1))[0]
    assert divmod(int(found.argmax()), 16) == (4, 11)


def test_the_potential_and_the_inner_product_are_mapped_pixel_by_pixel() -> None:
    energy, y, t = with_potential(), images(), torch.tensor([0.0, 0.1, 10.0])
    assert isinstance(energy.anchor, StationaryGaussian)
    without = Energy(energy.network, None, energy.whiteners)
    seen = torch.cat([energy.anchor(y, t).whitened, white()(y, t).whitened], dim=1)
    maps = energy.network(seen, t)
    expected = (0.5 * seen * maps[:, :6]).sum(dim=1) + maps[:, 6:].sum(dim=1)
    assert torch.allclose(without.energy_map(y, t), expected, rtol=1e-5, atol=1e-6)


def test_the_offset_is_minus_the_integral_of_its_slopes() -> None:
    offset = SlopeOffset(1e-3, 1e3, knots=7).double()
    with torch.no_grad():
        offset.slopes.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 2.0]))
    decade = math.log(10.0)
    t = torch.tensor([1e3, 1e2, 10**1.5, 1e-3, 1e-6, 0.0, 1e6], dtype=torch.float64)
    total = 4.5 * decade
    expected = torch.tensor([0, -2 * decade, -2 * decade, -total, -total, -total, 0], dtype=torch.float64)
    assert torch.allclose(offset(t), expected, atol=1e-12)


def test_an_offset_slope_is_its_derivative_in_log_t() -> None:
    offset = SlopeOffset(1e-9, 1e3).double()
    with torch.no_grad():
        offset.slopes.copy_(torch.arange(63.0))
    middle = torch.exp(torch.log(torch.tensor(1e-9)) + offset.spacing * (torch.arange(63.0) + 0.5)).double()
    middle.requires_grad_()
    (derivative,) = torch.autograd.grad(offset(middle).sum(), middle)
    assert torch.allclose(derivative * middle, torch.arange(63.0).double(), atol=1e-6)


@pytest.mark.parametrize("make", [anchored, with_potential])
def test_every_parameter_reaches_a_gradient(make: Callable[[], Energy]) -> None:
    """A parameter that no gradient of U depends on would stop DDP."""
    energy = make()
    gradients = energy.gradients(images(), torch.tensor([1e-3, 0.1, 10.0]))
    assert gradients.noise_variance is not None
    (gradients.image.square().sum() + gradients.noise_variance.square().sum()).backward()
    silent = [name for name, p in energy.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("make", [anchored, with_potential])
def test_the_anchored_energy_is_the_gaussians_where_the_noise_is_large(make: Callable[[], Energy]) -> None:
    energy, y = make(), images()
    t = torch.full((3,), 1e3)
    noisy = y + math.sqrt(1e3) * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert energy.anchor is not None
    difference = (energy(noisy, t) - energy.anchor(noisy, t).energy).detach()
    assert float(difference.abs().max()) / y[0].numel() < 1e-3


def test_a_denoiser_moves_along_its_network() -> None:
    f = UNet(3, LinearEmbedding(), width=4, scales=2, layers=2)
    y, t = images(), torch.tensor([0.0, 0.1, 10.0])
    model = Denoiser(f)
    assert torch.allclose(model.denoise(y, t), y - t[:, None, None, None] * f(y, t))
    assert model.gradients(y, t).noise_variance is None


@pytest.mark.parametrize("seed", [0, 1])
def test_at_step_0_the_anchored_energy_has_the_exact_entropy_of_a_colour_texture(seed: int) -> None:
    """A colour Gaussian texture of known spectrum, by the paper's protocol, before training."""
    truth = StationaryGaussian(MEAN, random_spectrum(3, 16, 16, seed))
    energy = Energy(network(output_gain=0.1), truth, [truth], SlopeOffset(1e-9, 1e3), Fading(VARIANCE))
    x = truth.sample(2000, torch.Generator().manual_seed(seed))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(100 + seed))
    t_max = torch.full((len(x),), 1e3)
    d = x[0].numel()
    with torch.no_grad():
        clean = energy(x, torch.zeros(len(x))).double()
        noisy = energy(x + math.sqrt(1e3) * z, t_max).double()
    exact = 8 + float(truth.entropy()) / (d * math.log(2))
    # Energies are normalized by construction…
    stderr = float(clean.std()) / math.sqrt(len(x)) / (d * math.log(2))
    assert abs(8 + float(clean.mean()) / (d * math.log(2)) - exact) < 3 * stderr
    # … and the paper's protocol finds log Z = 0 and the same figure.
    log_z = log_normalizer(noisy, z.double().square().sum(dim=(1, 2, 3)), d, noise_entropy(d, 1e3))
    assert abs(log_z.value) < 3 * log_z.stderr + 0.5 * d * float(truth.eigenvalues.mean()) / 1e3
    paper = paper_bits_per_dim(clean, log_z, d)
    assert abs(paper.value - exact) < 3 * paper.stderr
    assert abs(noise_entropy(d, 1e3) - float(noisy.mean())) < 3 * float(noisy.std()) / math.sqrt(len(x))
