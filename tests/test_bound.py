"""The certified bound: never below the truth where all images can be enumerated; tight where it should be."""

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor

from dualscore.densities import GaussianMixture, gaussian_textures
from dualscore.energy import Gradients, ScoreModel
from dualscore.evaluation import evaluate_checkpoint
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.likelihood import variational_bound
from dualscore.likelihood.bound import (
    decode,
    decoder_energy,
    diffusion_energy,
    noise_in_strata,
    prior_divergence,
    stratified_variances,
)  # fmt: skip
from dualscore.likelihood.own_gaussian import OwnGaussian
from dualscore.likelihood.units import STEP
from dualscore.measuring.estimators import ESTIMATORS, pilot_stages
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.subject import Images, Subject
from dualscore.objective import denoising_loss
from dualscore.settings.config import EvaluateConfig
from test_gaussian import random_spectrum


class ImperfectDenoiser(ScoreModel):
    """The posterior mean over a finite set of images, with an error that depends on y and t."""

    def __init__(self, images: Tensor, p: Tensor, error: float, generator: torch.Generator) -> None:
        super().__init__()
        self.images, self.log_p, self.error = images, p.log(), error
        self.push = torch.randn(images[0].shape, generator=generator, dtype=images.dtype)
        self.pull = torch.rand(1, generator=generator, dtype=images.dtype)

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        t = noise_variance[:, None]
        distance = (noisy[:, None] - self.images).flatten(2).square().sum(dim=2)
        posterior = torch.softmax(self.log_p - distance / (2 * t), dim=1)
        denoised = torch.einsum("bk,kchw->bchw", posterior, self.images)
        scale = t.sqrt().clamp(max=0.3)[:, :, None, None]
        denoised = denoised + self.error * scale * (self.push + self.pull * torch.tanh(noisy / scale))
        return Gradients((noisy - denoised) / t[:, :, None, None], None)


def enumerable(seed: int) -> tuple[Tensor, Tensor, int, torch.Generator]:
    """All images of a few pixels and grey levels, with random probabilities."""
    generator = torch.Generator().manual_seed(seed)
    height, width = [(1, 2), (2, 2), (1, 3), (1, 1)][seed % 4]
    levels = int(torch.randint(2, 4 if height * width == 4 else 6, (1,), generator=generator))
    values = list(itertools.product(range(levels), repeat=height * width))
    images = torch.tensor(values, dtype=torch.float64).reshape(-1, 1, height, width) / (levels - 1)
    sharpness = 4 * torch.rand(1, generator=generator, dtype=torch.float64)
    p = torch.softmax(sharpness * torch.randn(len(images), generator=generator, dtype=torch.float64), 0)
    return images, p, levels, generator


PARTS = ("decoder", "diffusion", "prior")


@functools.cache
def drawn(seed: int, error: float) -> tuple[dict[str, Tensor], float]:
    """The bound's parts by repeat over the noise, exact in x, and the entropy, in nats."""
    images, p, levels, generator = enumerable(seed)
    model = ImperfectDenoiser(images, p, error, generator)
    spread = 0.1 + 0.4 * torch.rand(1, generator=generator, dtype=torch.float64)
    shape = (1, 1, *images.shape[2:])
    prior = StationaryGaussian(torch.tensor([0.5]), spread.expand(shape)).double()
    repeats = max(64, 1024 // len(images))
    step = 1 / (levels - 1)
    t0 = (step * (0.15 + 0.5 * float(torch.rand(1, generator=generator)))) ** 2
    terms = variational_bound(
        model, images.repeat(repeats, 1, 1, 1), prior,
        t0=t0, t1=1e3, strata=24, generator=generator, levels=levels,
    )  # fmt: skip
    found = {part: (getattr(terms, part).reshape(repeats, len(images)) * p).sum(dim=1) for part in PARTS}
    return found, -float((p * p.log()).sum())


def gap(seed: int, error: float, parts: tuple[str, ...] = PARTS) -> tuple[float, float]:
    """E bound − entropy and its standard error."""
    found, entropy = drawn(seed, error)
    per_repeat = sum((found[part] for part in parts), torch.tensor(0.0))
    return float(per_repeat.mean()) - entropy, float(per_repeat.std()) / math.sqrt(len(per_repeat))


def test_it_never_falls_below_the_truth_in_112_draws() -> None:
    """Seven of each shape and error."""
    found = [gap(seed, [0.0, 0.02, 0.1, 0.5][(seed // 4) % 4]) for seed in range(112)]
    assert min(value + 5 * stderr for value, stderr in found) > 0  # tails are heavy where few images are
    exact = [value for seed, (value, _) in enumerate(found) if (seed // 4) % 4 == 0]
    bad = [value for seed, (value, _) in enumerate(found) if (seed // 4) % 4 == 3]
    # With the exact denoiser only the decoder loses something: it does not know which images there are.
    assert 0 < sum(exact) / len(exact) < 0.3 < 0.6 < sum(bad) / len(bad)


class OfCells(ScoreModel):
    """The posterior mean of a finite set of images that were dequantized: of pixels in cells of one step."""

    def __init__(self, images: Tensor, p: Tensor, step: float, error: float) -> None:
        super().__init__()
        self.images, self.log_p, self.step, self.error = images, p.log(), step, error

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        sigma = noise_variance.sqrt()[:, None, None, None, None]
        apart = (self.images - noisy[:, None]) / sigma
        low, high = apart - self.step / (2 * sigma), apart + self.step / (2 * sigma)
        normal = torch.distributions.Normal(0.0, 1.0)
        near = torch.where(low + high > 0, -1.0, 1.0)  # of two tails the difference is told on the left
        mass = near * (normal.cdf(near * high) - normal.cdf(near * low))
        mass = mass.clamp(min=1e-300)
        slope = (normal.log_prob(low).exp() - normal.log_prob(high).exp()) / mass
        within = noisy[:, None] + sigma * slope
        shares = torch.softmax(self.log_p + mass.log().sum(dim=(2, 3, 4)), dim=1)
        denoised = torch.einsum("bk,bkchw->bchw", shares, within)
        denoised = denoised + self.error * noise_variance.sqrt()[:, None, None, None]
        return Gradients((noisy - denoised) / noise_variance[:, None, None, None], None)


@pytest.mark.parametrize("error", [0.0, 0.2])
def test_dequantized_it_is_above_the_truth_and_with_the_true_score_just_above(error: float) -> None:
    for seed in range(4):
        images, p, levels, generator = enumerable(seed)
        step, many = 1 / (levels - 1), max(16, 1500 // len(images))
        prior = StationaryGaussian(torch.tensor([0.5]), torch.full((1, 1, *images.shape[2:]), 0.2)).double()
        terms = variational_bound(
            OfCells(images, p, step, error), images.repeat(many, 1, 1, 1), prior,
            t0=(0.02 * step) ** 2, t1=1e3, strata=32, generator=generator, levels=levels, dequantized=True,
        )  # fmt: skip
        found = (terms.total.reshape(many, len(images)) * p).sum(dim=1)
        excess, stderr = float(found.mean()) + float((p * p.log()).sum()), float(found.std()) / many**0.5
        d = images[0].numel()
        assert excess + 5 * stderr > 0
        assert (excess < 0.02 * d + 3 * stderr) == (error == 0.0), (seed, excess, stderr)


REPEATS = 100


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_what_an_evaluation_reports_is_a_bound_too(error: float) -> None:
    """The path of `make evaluate`: a pilot chooses t0 and t1, stages measure; on a few 8-bit images."""
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        # Neighbouring grey levels, up to the end of the range: the decoder has to tell them apart.
        values = torch.arange(240, 256).repeat(2)
        images = torch.stack([values, torch.tensor([0, 128]).repeat_interleave(16)], dim=1).view(-1, 1, 1, 2)
        images = images.double() / 255
        p = torch.softmax(0.3 * torch.randn(len(images), generator=generator, dtype=torch.float64), 0)
        model = ImperfectDenoiser(images, p, error, generator)
        prior = StationaryGaussian(torch.tensor([0.5]), torch.full((1, 1, 1, 2), 0.1)).double()
        subject = Subject(
            model, prior, None, quantized=True, dequantize=False, t_range=(2e-5, 1e2), seed=seed
        )

        options = EvaluateConfig(estimators=["bound"])
        extent = evaluate_checkpoint.extent(options, {"train": 10**6, "val": 10**6}, "val")
        measured = Measured(subject, 2, Grid(2e-5, 1e2, 24), [])
        position = torch.arange(REPEATS * len(images))
        chosen: list[str] = []
        for pilot in (True, False):
            stages = pilot_stages(measured, extent) if pilot else ESTIMATORS["bound"].stages(measured, extent)
            chosen += [stage.split for stage in stages]
            for stage in stages:
                # The images that are reported have draws of their own, as in a session.
                split = "" if stage.split == extent.reported else stage.split
                batch = Images(images.repeat(REPEATS, 1, 1, 1), position.tolist(), split)
                measured.rows[stage.name] = {"position": position, **stage.measure(subject, batch)}
            measured = measured.with_span()
        assert chosen == [
            "train",
            "train",
            "val",
            "val",
            "val",
        ]  # t0 and t1 are not chosen on what is reported
        estimated = ESTIMATORS["bound"].estimate(measured)
        assert torch.equal(estimated.position, position)
        first, last = measured.span
        assert (estimated.also["t0"], estimated.also["t1"]) == (
            measured.grid.edge(first),
            measured.grid.edge(last),
        )
        nats = estimated.bits * 2 * math.log(2)
        per_repeat = (nats.reshape(REPEATS, len(images)) * p).sum(dim=1)
        stderr = float(per_repeat.std()) / math.sqrt(REPEATS)
        gap = float(per_repeat.mean()) + float((p * p.log()).sum())
        assert gap > -4 * stderr
        assert gap < 1.2  # twice the decoder would be more


@pytest.mark.parametrize("missing", PARTS)
def test_every_part_is_needed(missing: str) -> None:
    parts = tuple(part for part in PARTS if part != missing)
    whole = [gap(seed, 0.0) for seed in range(24)]
    without = [gap(seed, 0.0, parts) for seed in range(24)]
    lost = sum(a - b for (a, _), (b, _) in zip(whole, without, strict=True)) / 24
    assert lost > (1e-4 if missing == "prior" else 0.05)
    if missing != "prior":  # at t1 = 1e3 the prior's part is next to nothing
        assert any(value + 4 * stderr < 0 for value, stderr in without)


def test_the_decoder_is_the_softmax_over_all_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (4, 3, 5, 2), generator=generator).double() / 255
    clean[0, 0, 0] = torch.tensor([0.0, 1.0])
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    lattice = torch.arange(256, dtype=torch.float64) / 255
    for t in ((0.05 * STEP) ** 2, (0.2 * STEP) ** 2, STEP**2, (30 * STEP) ** 2, 10.0):
        centre = clean + math.sqrt(t) * noise
        variance = t * torch.tensor([0.02, 0.1, 0.5, 1.0], dtype=torch.float64)
        distance = (centre[..., None] - lattice).square() / (2 * variance[:, None, None, None, None])
        chosen = (clean * 255).round().long()[..., None]
        expected = -torch.log_softmax(-distance, dim=-1).gather(-1, chosen).flatten(1).sum(dim=1)
        assert torch.allclose(decoder_energy(clean, centre, variance), expected, rtol=1e-9)


def test_the_decoder_stands_where_the_denoiser_points_and_expects_to_err() -> None:
    """For a Gaussian that varies by a tenth of the noise: narrower than the noise, and better for it."""
    generator = torch.Generator().manual_seed(0)
    t0 = (2 * STEP) ** 2
    density = StationaryGaussian(torch.tensor([0.5]), torch.full((1, 1, 8, 8), t0)).double()
    model = GaussianMixture([1.0], [density], (1, 8, 8)).double()
    clean = (density.sample(64, generator) * 255).round() / 255
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    noisy = clean + math.sqrt(t0) * noise
    denoised = 0.5 + 0.5 * (noisy - 0.5)
    expected = decoder_energy(clean, denoised, torch.full((64,), 0.5 * t0, dtype=torch.float64))
    found = decode(model, clean, noise, t0).detach()
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.02)
    blind = decoder_energy(clean, noisy, torch.full((64,), t0, dtype=torch.float64))
    assert float(found.mean() - blind.mean()) / 64 == pytest.approx(-0.5 * math.log(2), abs=0.03)


def test_a_model_that_is_not_finite_has_a_bound_that_is_not() -> None:
    clean = torch.full((2, 1, 2, 2), 0.2)
    found = decoder_energy(clean, clean, torch.tensor([math.nan, 1e-5]))
    assert found.isnan().tolist() == [True, False]
    assert torch.equal(found[1:], decoder_energy(clean[1:], clean[1:], torch.tensor([1e-5])))
    assert decoder_energy(clean, clean * math.nan, torch.tensor([1e-6, 1e-6])).isnan().all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_the_decoder_sums_to_one_whatever_the_denoiser_says(scale: float) -> None:
    """Over all images that could have been behind one y."""
    generator = torch.Generator().manual_seed(1)
    t0 = (0.7 / 3) ** 2
    images = (
        torch.tensor(list(itertools.product(range(4), repeat=3)), dtype=torch.float64).view(-1, 1, 1, 3) / 3
    )
    y = torch.rand((1, 1, 1, 3), generator=generator, dtype=torch.float64)
    push = scale * torch.randn((1, 1, 1, 3), generator=generator, dtype=torch.float64)

    class Pushes(ScoreModel):
        def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
            return Gradients(push.expand_as(noisy), None)

    energies = decode(Pushes(), images, (y - images) / math.sqrt(t0), t0, levels=4)
    assert float(torch.exp(-energies).sum()) == pytest.approx(1.0)


def test_a_narrow_decoder_sums_to_one_too() -> None:
    """In a large image, whose denoiser explains most of the noise: over the levels of one pixel."""
    generator = torch.Generator().manual_seed(1)
    t0, shape = (1.5 * STEP) ** 2, (1, 1, 32, 32)
    gradient = 0.9 / math.sqrt(t0) * torch.randn(shape, generator=generator, dtype=torch.float64)
    y = torch.rand(shape, generator=generator, dtype=torch.float64)

    class Explains(ScoreModel):
        def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
            return Gradients(gradient.expand_as(noisy), None)

    clean = torch.full((256, 1, 32, 32), 0.2, dtype=torch.float64)
    clean[:, 0, 3, 4] = torch.arange(256, dtype=torch.float64) / 255
    energies = decode(Explains(), clean, (y - clean) / math.sqrt(t0), t0)
    # All images differ in one pixel alone, so what the others cost is the same: P of that pixel's level.
    variance = t0 * (1 - t0 * gradient.square().mean())
    assert 0.1 < float(variance) / t0 < 0.3
    denoised = (y - t0 * gradient)[0, 0, 3, 4]
    lattice = torch.arange(256, dtype=torch.float64) / 255
    log_p = torch.log_softmax(-(denoised - lattice).square() / (2 * variance), dim=0)
    assert torch.allclose(energies - energies[51], log_p[51] - log_p, atol=1e-6)


def test_the_priors_part_is_the_divergence_of_two_gaussians() -> None:
    prior = StationaryGaussian(torch.tensor([0.4, 0.5]), random_spectrum(2, 4, 4)).double()
    clean = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t1 = 0.3
    eye = torch.eye(32, dtype=torch.float64)
    covariance = prior.synthesize(prior.analyze(eye.reshape(32, 2, 4, 4)) * prior.eigenvalues).flatten(1)
    mean = prior.mean[:, None, None].expand(2, 4, 4).flatten()
    whole = torch.distributions.MultivariateNormal(mean, covariance + t1 * eye)
    for image, value in zip(clean, prior_divergence(clean, prior, t1), strict=True):
        point = torch.distributions.MultivariateNormal(image.flatten(), t1 * eye)
        assert float(value) == pytest.approx(float(torch.distributions.kl_divergence(point, whole)))


def test_a_denoiser_that_fails_says_so_of_itself() -> None:
    """Ten times further away than noise is: the decoder is as wide as it errs, not as narrow as can be."""

    class Failing(ScoreModel):
        def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
            return Gradients(
                torch.ones_like(noisy) * (10.0 / noise_variance.sqrt())[:, None, None, None], None
            )

    clean, t0 = torch.full((1, 1, 16, 16), 0.5).mul(255).round() / 255, 1e-5
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    bits = float(decode(Failing(), clean, noise, t0)) / (256 * math.log(2.0))
    assert bits < 6.0


def test_strata_cover_the_range_once() -> None:
    low = stratified_variances(torch.zeros(1, 5), 1e-4, 1e1)[0]
    high = stratified_variances(torch.ones(1, 5), 1e-4, 1e1)[0]
    assert torch.allclose(low[1:], high[:-1])
    assert float(low[0]) == pytest.approx(1e-4)
    assert float(high[-1]) == pytest.approx(1e1)


def test_it_is_tight_on_8_bit_gaussian_textures() -> None:
    """The exact denoiser of the un-quantised texture loses little more than what rounding adds."""
    density = gaussian_textures((3, 8, 8)).double()
    generator = torch.Generator().manual_seed(0)
    images = (density.sample(400, generator).clamp(0, 1) * 255).round() / 255
    truth = density(images, torch.full((400,), QUANTIZATION_VARIANCE, dtype=torch.float64))
    truth = truth + 192 * math.log(255)
    mean, spectrum = density.moments()
    prior = StationaryGaussian(mean, spectrum).double()
    terms = variational_bound(
        density, images, prior, t0=(STEP / 2) ** 2, t1=1e2, strata=32, generator=generator
    )
    excess = (terms.total - truth) / (192 * math.log(2))
    stderr = float(excess.std()) / 20
    assert -3 * stderr < float(excess.mean()) < 0.01 + 3 * stderr
    assert stderr < 0.01


def test_most_of_the_noise_of_where_levels_fall_is_gone() -> None:
    """Against independent strata without what is known: the same mean, less than half of the noise."""
    density = gaussian_textures((1, 40, 40)).double()
    images = (density.sample(4, torch.Generator().manual_seed(0)).clamp(0, 1) * 255).round() / 255
    mean, spectrum = density.moments()
    prior = StationaryGaussian(mean, spectrum).double()
    t0, t1, strata, repeats = 1e-5, 1e2, 6, 100
    many = images.repeat(repeats, 1, 1, 1)
    generator = torch.Generator().manual_seed(1)
    found = variational_bound(density, many, prior, t0=t0, t1=t1, strata=strata, generator=generator)
    draws = noise_in_strata(many, t0, t1, strata, generator)
    space = torch.stack([denoising_loss(density, many, noise, t) for noise, t in draws], dim=1)
    plain = diffusion_energy(space, 1600, math.log(t1 / t0) / strata).view(repeats, -1)
    ours = found.diffusion.view(repeats, -1)
    apart = (ours.mean(dim=0) - plain.mean(dim=0)) / ((ours.var(dim=0) + plain.var(dim=0)) / repeats).sqrt()
    assert float(apart.square().sum()) < 23.0  # chi-squared of 4 degrees: above it once in 8,000
    assert float((ours.var(dim=0) / plain.var(dim=0)).mean()) < 1 / 4


def test_the_known_part_is_the_integral_of_its_losses() -> None:
    images = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = StationaryGaussian(torch.tensor([0.5, 0.4]), random_spectrum(2, 4, 5)).double()
    known, t = OwnGaussian(images, prior.mean), torch.logspace(-4, 1, 2001, dtype=torch.float64)
    losses = torch.stack([known.space_loss(one.expand(3)) for one in t], dim=1)
    integral = 0.5 * 40 * torch.trapezoid(losses, t.log(), dim=1)
    assert torch.allclose(known.diffusion(1e-4, 10.0), integral, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 1, 4, 4), 0.5), "grey levels k/255"),
        (torch.full((2, 1, 4, 4), 1.5), "pixels in \\[0, 1\\], got 1.5 to 1.5"),
        (torch.full((2, 1, 4, 4), math.nan), "pixels in"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.zeros(0, 1, 4, 4), "at least one"),
    ],
)
def test_images_without_a_discrete_likelihood_are_refused(images: Tensor, message: str) -> None:
    prior = StationaryGaussian(torch.tensor([0.5]), random_spectrum(1, 4, 4))
    with pytest.raises(ValueError, match=message):
        variational_bound(
            gaussian_textures((1, 4, 4)), images, prior, t0=1e-6, t1=1.0, strata=2,
            generator=torch.Generator(),
        )  # fmt: skip
