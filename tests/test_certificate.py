"""The certificate: never below the truth, whatever the denoiser and the tails, and not far above it."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from dualscore.densities import gaussian_textures, texture_mixture
from dualscore.energy import Gradients, ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import (
    BoundedRows,
    Mirrored,
    bounded_rows,
    certify,
    population_limit,
    variational_bound,
)
from dualscore.likelihood.bound import decode, diffusion_energy, noise_in_strata, prior_divergence
from dualscore.likelihood.certificate import (
    _foreseen,
    bounded_denoise,
    bounded_space,
    decode_bounded,
    decoder_ceiling,
    decoder_tail,
    noise_limit,
    prior_ceiling,
    space_ceiling,
    space_tail,
    sum_limit,
)
from dualscore.likelihood.units import STEP
from dualscore.noise import corrupt
from dualscore.objective import denoising_loss

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(y, t, posterior mean) → x̂."""

LEVELS = 4
IMAGES = torch.tensor(list(itertools.product(range(LEVELS), repeat=2))).view(-1, 1, 1, 2) / (LEVELS - 1)
P = torch.softmax(2.0 * torch.randn(len(IMAGES), generator=torch.Generator().manual_seed(0)), 0)
ENTROPY = -float((P * P.log()).sum())
PRIOR = StationaryGaussian(torch.tensor([0.5]), torch.full((1, 1, 1, 2), 0.2))
T0, T1 = 0.02, 100.0


class Enumerated(ScoreModel):
    """The posterior mean over all images of two pixels and four grey levels, and what is made of it."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        t = noise_variance[:, None]
        distance = (noisy.flatten(1)[:, None] - IMAGES.flatten(1)).square().sum(dim=2)
        mean = (torch.softmax(P.log() - distance / (2 * t), dim=1) @ IMAGES.flatten(1)).view_as(noisy)
        t = t[:, :, None, None]
        return Gradients((noisy - self.denoiser(noisy, t, mean)) / t, None)


def rarely(noisy: Tensor) -> Tensor:
    """One noisy image in about a thousand, by digits of its pixels that are as good as random."""
    digits = (noisy.sum(dim=(1, 2, 3), keepdim=True) * 1e4).floor().remainder(1000)
    return digits == 7


DENOISERS: dict[str, Denoiser] = {
    "exact": lambda _y, _t, mean: mean,
    "constant": lambda _y, _t, mean: torch.full_like(mean, 0.5),
    "shifted": lambda _y, _t, mean: mean + 0.2,
    "erratic": lambda y, _t, mean: mean + 0.3 * torch.sin(1e3 * y),
    "far away": lambda y, t, _mean: 1e6 * torch.sign(torch.sin(50.0 * y)) * (1 + t),
}


def draw(denoiser: Denoiser, repeats: int, images: int, p: Tensor) -> tuple[Tensor, BoundedRows]:
    """Which images each of many measurements met, (repeats, images), and the draws of all of them."""
    generator = torch.Generator().manual_seed(1)
    which = torch.multinomial(p, repeats * images, replacement=True, generator=generator)
    rows = bounded_rows(
        Enumerated(denoiser), IMAGES[which], PRIOR,
        t0=T0, t1=T1, strata=16, generator=generator, levels=LEVELS,
    )  # fmt: skip
    return which.view(repeats, images), rows


def of_repeat(rows: BoundedRows, repeat: int, images: int) -> BoundedRows:
    part = slice(repeat * images, (repeat + 1) * images)
    return rows._replace(decoder=rows.decoder[part], space=rows.space[part], prior=rows.prior[part])


def totals(rows: BoundedRows) -> Tensor:
    width = math.log(rows.t1 / rows.t0) / rows.space.shape[1]
    return rows.decoder + rows.prior + 0.5 * rows.dimension * width * rows.space.sum(dim=1)


def mean_of_each(values: Tensor, which: Tensor) -> Tensor:
    """The mean over the noise of each image's bound, from all measurements together: thousands of draws."""
    sums = torch.zeros(len(IMAGES), dtype=torch.float64).index_add(0, which.flatten(), values)
    return sums / torch.bincount(which.flatten(), minlength=len(IMAGES))


@pytest.mark.parametrize("name", DENOISERS)
def test_it_never_falls_below_the_truth_in_1000_draws(name: str) -> None:
    """Two hundred a denoiser, of 256 images each."""
    repeats, images = 200, 256
    which, rows = draw(DENOISERS[name], repeats, images, P)
    each = mean_of_each(totals(rows), which)
    truth, everywhere = each[which].mean(dim=1), float(each @ P.double())
    assert everywhere > ENTROPY
    ceiling = prior_ceiling(PRIOR, T1)
    for repeat in range(repeats):
        mine = of_repeat(rows, repeat, images)
        assert 0.0 < certify(mine).limit - float(truth[repeat]) < 2.0
        assert population_limit(mine, ceiling) > everywhere
    # The populations' limit needs more images before it says anything.
    limits = [population_limit(of_repeat(rows, repeat, 5120), ceiling) for repeat in range(10)]
    assert min(limits) > everywhere
    if name == "exact":
        assert max(limits) < everywhere + 0.25


def test_rare_noise_deceives_a_normal_error_but_not_the_certificate() -> None:
    """A denoiser that one noisy image in a thousand sends to the other end of the box."""
    repeats, images = 1000, 16
    # One image, known to all: what varies is the noise alone.
    p = torch.zeros(len(IMAGES))
    p[0] = 1.0

    def treacherous(y: Tensor, t: Tensor, mean: Tensor) -> Tensor:  # noqa: ARG001
        return torch.where(rarely(y), 1.0, torch.zeros_like(mean))

    _, rows = draw(treacherous, repeats, images, p)
    space = rows._replace(decoder=torch.zeros_like(rows.decoder))
    values = totals(space)
    truth = float(values.mean())
    values = values.view(repeats, images)
    normal = values.mean(dim=1) + 1.64 * values.std(dim=1) / math.sqrt(images)
    assert int((normal < truth).sum()) > 0.3 * repeats
    limits = [certify(of_repeat(space, repeat, images)).limit for repeat in range(repeats)]
    assert min(limits) > truth
    assert max(limits) < math.inf


def test_rare_images_deceive_a_normal_error_but_not_the_populations_limit() -> None:
    """An image of probability 0.002 that the denoiser has never heard of."""
    repeats, images = 1000, 300
    p = torch.zeros(len(IMAGES))
    p[0], p[-1] = 0.998, 0.002
    generator = torch.Generator().manual_seed(2)
    which = torch.multinomial(p, repeats * images, replacement=True, generator=generator)
    model = Enumerated(lambda _y, _t, mean: torch.zeros_like(mean))
    pool = bounded_rows(
        model, IMAGES[[0, -1]].repeat_interleave(2000, 0), PRIOR,
        t0=T0, t1=T1, strata=16, generator=generator, levels=LEVELS,
    )  # fmt: skip
    chosen = torch.randint(0, 2000, which.shape, generator=generator) + 2000 * (which > 0)
    rows = pool._replace(decoder=pool.decoder[chosen], space=pool.space[chosen], prior=pool.prior[chosen])
    each = totals(pool).view(2, 2000).mean(dim=1)
    truth = 0.998 * float(each[0]) + 0.002 * float(each[1])
    values = totals(rows).view(repeats, images)
    normal = values.mean(dim=1) + 1.64 * values.std(dim=1) / math.sqrt(images)
    assert int((normal < truth).sum()) > 0.3 * repeats
    ceiling = prior_ceiling(PRIOR, T1)
    limits = [population_limit(of_repeat(rows, repeat, images), ceiling) for repeat in range(repeats)]
    assert min(limits) > truth
    assert sorted(limits)[repeats // 2] < math.inf


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_inequality_holds_in_every_law_of_two_values_that_we_can_enumerate(confidence: float) -> None:
    """All outcomes of eight draws of different laws, with their probabilities: misses are counted exactly."""
    generator = torch.Generator().manual_seed(0)
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    worst = 0.0
    for law in range(9):
        low = torch.rand(8, generator=generator, dtype=torch.float64) * [0.0, 0.3, 0.9][law % 3]
        p = torch.rand(8, generator=generator, dtype=torch.float64) ** [1, 4, 0.2][law // 4]
        if law % 2:
            p = p.mean().expand(8)
        mean = low + (1 - low) * p
        values = low + (1 - low) * outcomes
        chance = torch.where(outcomes > 0, p, 1 - p).prod(dim=1)
        # Centres foreseen from the draws before, and centres that know the law.
        before = (values.cumsum(1) - values) / torch.arange(8).clamp(min=1)
        for centres in (before, mean.expand_as(values), torch.zeros_like(values)):
            limits = [sum_limit(v, c, 1.0, confidence) for v, c in zip(values, centres, strict=True)]
            missed = torch.tensor(limits, dtype=torch.float64) < float(mean.sum()) - 1e-9
            worst = max(worst, float(chance[missed].sum()))
    assert worst <= 1 - confidence
    assert worst > 0.01 * (1 - confidence)  # nor is it so wide that nothing could be missed


def test_foreseeing_the_means_pays() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 0.5 + 0.4 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    values = (mean + 0.02 * torch.randn(20_000, generator=generator, dtype=torch.float64)).clamp(0, 1)
    told = sum_limit(values, mean, 1.0, 0.95) - float(values.sum())
    blind = sum_limit(values, mean.mean().expand(20_000), 1.0, 0.95) - float(values.sum())
    assert told < 0.2 * blind

    def maurer_pontil(values: Tensor, delta: float) -> float:
        """Theorem 11 of 2009, for independent variables in [0, 1]."""
        n, log = len(values), math.log(2 / delta)
        return n * (math.sqrt(2 * float(values.var()) * log / n) + 7 * log / (3 * (n - 1)))

    assert blind < 1.1 * maurer_pontil(values, 0.05)
    normal = 1.64 * math.sqrt(20_000) * 0.02
    assert normal < told < 0.5 * maurer_pontil(values - mean + 0.5, 0.05)


def test_it_is_within_a_tenth_of_a_bit_of_the_bound_on_textures() -> None:
    density = texture_mixture((1, 16, 16))
    generator = torch.Generator().manual_seed(0)
    images = (density.sample(512, generator).clamp(0, 1) * 255).round() / 255
    mean, spectrum = density.moments()
    prior = StationaryGaussian(mean.float(), spectrum.float())
    t0, t1 = (STEP / 2) ** 2, 10.0
    unit = 256 * math.log(2)
    draws = {"t0": t0, "t1": t1, "strata": 16}
    terms = variational_bound(density, images, prior, **draws, generator=torch.Generator().manual_seed(1))
    rows = bounded_rows(density, images, prior, **draws, generator=torch.Generator().manual_seed(1))
    certificate = certify(rows)
    bound = float(terms.total.mean()) / unit
    assert abs(certificate.estimate / unit - bound) < 0.02
    # By the same noise: bounding the denoiser takes nothing away but what the decoder's blind share costs.
    same = torch.Generator().manual_seed(1)
    noises = noise_in_strata(images, t0, t1, 16, same)
    space = torch.stack([denoising_loss(density, images, noise, t) for noise, t in noises], dim=1)
    plain = diffusion_energy(space, 256, math.log(t1 / t0) / 16) + terms.prior
    plain = plain + decode(density, images, torch.randn(images.shape, generator=same), t0)
    assert abs(certificate.estimate - float(plain.mean())) / unit < 2e-3
    assert 0.0 < certificate.tail / unit < 1e-3
    assert 0.005 < certificate.limit / unit - bound < 0.1
    # A good denoiser leaves the ball next to never.
    for variance in (t0, 1e-3, 1.0):
        t = torch.full((512,), variance)
        noisy = corrupt(images, torch.randn(images.shape, generator=generator), t)
        free = density.denoise(noisy, t).detach().clamp(0.0, 1.0)
        assert torch.allclose(bounded_denoise(density, noisy, t).detach(), free, atol=1e-6)


class Pushed(ScoreModel):
    """x̂ = y + √t·push(y)."""

    def __init__(self, push: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.push = push

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        return Gradients(-self.push(noisy) / noise_variance.sqrt()[:, None, None, None], None)


PUSHES: list[Callable[[Tensor], Tensor]] = [
    lambda y: torch.zeros_like(y),
    lambda y: 1e9 * torch.sin(1e4 * y),
    lambda y: torch.ones_like(y),
    lambda y: -50.0 * y,
    lambda y: 1e4 * (0.5 - y),
]


@pytest.mark.parametrize("push", PUSHES)
def test_the_ranges_hold_and_bounding_never_hurts(push: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    model, shape, count = Pushed(push), (1, 4, 4), 256
    clean = (torch.randint(0, 256, (count, *shape), generator=generator) / 255).double()
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    # Up to the last noise that is kept.
    noise[:128] *= (
        math.sqrt(0.9999 * noise_limit(16)) / noise[:128].flatten(1).norm(dim=1)[:, None, None, None]
    )
    for variance in (1e-6, 1e-4, 1e-2, 1.0, 100.0):
        t = torch.full((count,), variance, dtype=torch.float64)
        noisy = corrupt(clean, noise, t)
        denoised = bounded_denoise(model, noisy, t)
        assert float(denoised.min()) >= 0.0
        assert float(denoised.max()) <= 1.0
        error = (denoised - clean).square().mean(dim=(1, 2, 3)) / t
        raw = (model.denoise(noisy, t) - clean).square().mean(dim=(1, 2, 3)) / t
        assert bool((error <= raw * (1 + 1e-9)).all())
        assert bool((error <= space_ceiling(t, 16)).all())
        assert torch.allclose(bounded_space(model, clean, noise, t), error)
        decoder = decode_bounded(model, clean, noise, variance)
        assert bool((decoder < decoder_ceiling(16, variance)).all())
        assert bool((decoder > 0).all())


def test_the_ceilings_are_reached() -> None:
    """A denoiser that goes on along the noise, on a noise as long as any that is kept."""
    clean = torch.full((1, 1, 4, 4), 0.6, dtype=torch.float64)
    z = torch.full_like(clean, math.sqrt(0.9999 * noise_limit(16) / 16))
    t = torch.tensor([1e-6], dtype=torch.float64)
    ceiling = float(space_ceiling(t, 16)[0])
    found = float(bounded_space(Pushed(lambda y: 1e3 * torch.ones_like(y)), clean, z, t)[0])
    assert found == pytest.approx(ceiling, rel=1e-3)
    # The decoder is worst where the noise leads to another grey level.
    t0 = (2 * STEP / float(z[0, 0, 0, 0])) ** 2
    blind = float(decode_bounded(Pushed(lambda y: 1e3 * torch.ones_like(y)), clean, z, t0)[0])
    assert blind == pytest.approx(decoder_ceiling(16, t0), rel=1e-3)
    # One step further the draw is cut.
    assert float(bounded_space(Pushed(lambda y: y), clean, 1.001 * z, t)[0]) == 0.0
    assert float(decode_bounded(Pushed(lambda y: y), clean, 1.001 * z, 1e-6)[0]) == 0.0


@pytest.mark.parametrize("dimension", [1, 2, 16, 256, 4096, 12288])
def test_what_is_cut_is_rare_and_paid_for(dimension: int) -> None:
    limit = noise_limit(dimension)
    assert float(stats.chi2.sf(limit, dimension)) < math.exp(-10.0)
    rare = float(stats.chi2.sf(limit, dimension))
    law, end = stats.chi2(dimension), limit + 20 * math.sqrt(dimension) + 100
    square, length = law.expect(lambda s: s, lb=limit, ub=end), law.expect(math.sqrt, lb=limit, ub=end)
    exact = (square + 2 * math.sqrt(limit) * length + limit * rare) / dimension
    assert exact <= space_tail(dimension) * (1 + 1e-6)
    assert space_tail(dimension) < 1.1 * exact
    assert 8.0 * space_tail(dimension) < 2e-3  # of ½ ln(t1/t0) ≈ 8, in nats a dimension
    assert 0.5 * square < decoder_tail(dimension, (STEP / 2) ** 2) < 0.01 * dimension


def test_the_bounded_decoder_sums_to_one() -> None:
    generator = torch.Generator().manual_seed(1)
    t0 = (1.0 / 3) ** 2
    values = list(itertools.product(range(4), repeat=3))
    images = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 3) / 3
    y = torch.rand((1, 1, 1, 3), generator=generator, dtype=torch.float64)
    for push in PUSHES:
        energies = decode_bounded(Pushed(push), images, (y - images) / math.sqrt(t0), t0, levels=4)
        assert float(torch.exp(-energies).sum()) == pytest.approx(1.0)


def test_the_priors_part_stays_below_its_ceiling() -> None:
    density = gaussian_textures((1, 4, 4)).double()
    mean, spectrum = density.moments()
    prior = StationaryGaussian(0.8 * mean, spectrum).double()
    corners = torch.randint(0, 2, (2000, 1, 4, 4), generator=torch.Generator().manual_seed(0)).double()
    corners[0] = 1.0
    for t1 in (0.01, 1.0, 100.0):
        found = float(prior_divergence(corners, prior, t1).max())
        assert found < prior_ceiling(prior, t1)
        assert found > 0.02 * prior_ceiling(prior, t1)


def test_a_draw_that_is_not_finite_certifies_nothing_and_one_out_of_range_is_refused() -> None:
    _, rows = draw(DENOISERS["exact"], 1, 8, P)
    broken = rows._replace(space=rows.space.clone().index_fill(0, torch.tensor([3]), math.nan))
    assert certify(broken).limit == math.inf
    assert population_limit(broken, 1.0) == math.inf
    with pytest.raises(ValueError, match="draws must lie between 0 and"):
        certify(rows._replace(space=rows.space + 1e3))
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        certify(rows, confidence=1.0)
    _, few = draw(DENOISERS["constant"], 1, 4, P)
    assert population_limit(few, 1.0) == math.inf
    assert math.isfinite(certify(few).limit)


def test_crops_of_a_photograph_count_as_one() -> None:
    """Copies of every image tell nothing new."""
    _, rows = draw(DENOISERS["exact"], 1, 8192, P)
    ceiling = prior_ceiling(PRIOR, T1)
    alone = population_limit(rows, ceiling)
    assert alone < math.inf
    copied = rows._replace(
        decoder=rows.decoder.repeat_interleave(3, 0),
        space=rows.space.repeat_interleave(3, 0),
        prior=rows.prior.repeat_interleave(3, 0),
    )
    photographs = torch.arange(8192).repeat_interleave(3)
    assert population_limit(copied, ceiling, photographs) == pytest.approx(alone)
    assert population_limit(copied, ceiling) < alone - 0.01


def test_nothing_is_foreseen_from_the_draw_itself_or_later_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 0.2 + 0.6 * torch.rand(5, 4, generator=generator, dtype=torch.float64)
    centres = _foreseen(values, 1.0).flatten()
    for place in range(20):
        changed = values.flatten().clone()
        changed[place:] = torch.rand(20 - place, generator=generator, dtype=torch.float64)
        found = _foreseen(changed.view(5, 4), 1.0).flatten()
        assert torch.equal(found[: place + 1], centres[: place + 1])
        assert place > 15 or not torch.equal(found, centres)


def test_what_is_foreseen_exactly_costs_the_range_and_no_more() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limit = sum_limit(values, values, 3.0, 0.95)
    # Of all bets the greatest is best then, and half of the risk is its.
    assert limit == pytest.approx(float(values.sum()) + 3.0 * math.log(2 / 0.05))
    noisy = sum_limit(values, values.flip(0), 3.0, 0.95)
    deviations = (values.flip(0) - values) / 3.0
    bets = [2.0**-k for k in range(12)]
    expected = min(
        float(values.sum())
        + 3.0 / bet * (math.log(2 / (0.05 * bet)) - float(torch.log1p(bet * deviations).sum()))
        for bet in bets
    )
    assert noisy == pytest.approx(expected)


class Lopsided(ScoreModel):
    """The exact denoiser of textures with an error that a mirror image would not share."""

    def __init__(self) -> None:
        super().__init__()
        self.density = gaussian_textures((1, 8, 8))

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        ramp = torch.linspace(-0.5, 0.5, 8, dtype=noisy.dtype)
        exact = self.density.gradients(noisy, noise_variance, time=False).image
        return Gradients(exact + 0.5 * ramp / noise_variance.sqrt()[:, None, None, None], None)


def test_a_mirrored_denoiser_has_the_better_bound_and_the_same_if_it_is_symmetric() -> None:
    model = Lopsided()
    density = model.density
    generator = torch.Generator().manual_seed(0)
    images = (density.sample(64, generator).clamp(0, 1) * 255).round() / 255
    mean, spectrum = density.moments()
    prior = StationaryGaussian(mean.float(), spectrum.float())

    def bound(model: ScoreModel) -> Tensor:
        return variational_bound(
            model, images, prior, t0=(STEP / 2) ** 2, t1=10.0, strata=8,
            generator=torch.Generator().manual_seed(1),
        ).total  # fmt: skip

    exact, lopsided, mirrored = bound(density), bound(model), bound(Mirrored(model))
    assert float((lopsided - exact).mean()) > 5.0
    assert torch.allclose(mirrored, exact, rtol=1e-3)  # the error is antisymmetric, and nothing is left of it
    assert torch.allclose(bound(Mirrored(density)), exact, rtol=1e-3)
    noisy, t = corrupt(images, torch.randn_like(images), torch.full((64,), 0.01)), torch.full((64,), 0.01)
    found = Mirrored(model).gradients(noisy, t)
    assert found.noise_variance is None
    assert found.energy is None
    assert torch.allclose(found.image.flip(-1), Mirrored(model).gradients(noisy.flip(-1), t).image, atol=1e-4)
