r"""An upper bound on −log P of 8-bit images, so a lower bound on log P, from a denoiser alone.

P is the law of images that the *denoiser's* diffusion defines, together with the decoder and the prior: where
the denoiser comes from an energy, the bound says nothing of exp(−U). For any denoiser x̂(y, t), any decoder
P(x | y) and any prior, with y_t = x + √t z,

    −log P(x) ≤ E[−log P(x | y_{t0})] + ½ ∫_{t0}^{t1} E‖x − x̂(y_t, t)‖² dt/t² + KL(q(y_{t1} | x) ‖ prior),

in nats. No energy has to be normalized, or to exist. The bound is an expectation over the noise; what is
measured here are unbiased *estimates* of it, whose mean may lie below it, and below −log P, by chance.
`dualscore.likelihood.certificate` has an upper confidence limit that assumes no normal law.
Source: Kingma et al. 2021, Variational diffusion models, arXiv 2107.00630, section 4.

A denoiser of dequantized images has a density, p, and −log P(x) ≤ E[−log p(x + u)] + d ln(levels − 1), u
uniform over a level's cell, which has a bound of the same form, with the Gaussian itself for a decoder.
Source: Theis, van den Oord, Bethge 2016, A note on the evaluation of generative models, arXiv 1511.01844.

Most of an estimate's noise is from where t falls, as E‖x − x̂‖²/t falls from d to 0 with t, and at small t
from how long z is. Three remedies leave its mean as it is: places in neighbouring strata mirror each other;
what a Gaussian's denoiser would have, Σ_k a_k/(a_k + t), a_k from the image's own squared coefficients, is
taken away, and its integral over ln t, Σ_k ln(1 + a_k/t0) − ln(1 + a_k/t1), added; and so is what the squares
of z add to that by chance.
Source: Owen 2013, Monte Carlo theory, methods and examples, chapter 8, antithetic and control variates.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import Gradients, ScoreModel, of_any_size
from dualscore.gaussian import StationaryGaussian
from dualscore.images import dequantize
from dualscore.likelihood.own_gaussian import OwnGaussian
from dualscore.likelihood.units import LEVELS, STEP, check_clean
from dualscore.networks.orders import mean_of_orientations
from dualscore.networks.restrained import knows_levels, restrained
from dualscore.noise import corrupt, log_uniform, normal_like
from dualscore.objective import denoising_loss

_NEGLIGIBLE = 100.0
"""Grey levels that weigh less than e^−100 of the nearest are left out: no floating point sum sees them."""


def bound_range(t_range: tuple[float, float]) -> tuple[float, float]:
    """The default t0 = max(t_min, (STEP/2)²) and t1 = t_max, in pixel²."""
    return max(t_range[0], (STEP / 2) ** 2), t_range[1]


class BoundTerms(NamedTuple):
    """The three parts of the bound on −log P(x), one draw of each in nats, (B,)."""

    decoder: Tensor  # −log P(x | y_{t0}), for one draw of y_{t0} an image
    diffusion: Tensor  # ½ ∫ ‖x − x̂‖² dt/t², one unbiased estimate an image: ≥ 0 in the mean
    prior: Tensor  # KL(q(y_{t1} | x) ‖ prior), exact

    @property
    def total(self) -> Tensor:
        """An unbiased estimate of an upper bound on −log P(x), in nats, shape (B,)."""
        return self.decoder + self.diffusion + self.prior


def variational_bound(
    model: ScoreModel,
    clean: Tensor,
    prior: StationaryGaussian,
    *,
    t0: float,
    t1: float,
    strata: int,
    generator: torch.Generator,
    levels: int = LEVELS,
    dequantized: bool = False,
) -> BoundTerms:
    """Estimate, without bias, the upper bound on −log P of images on their grey levels: one draw an image.

    Args:
        model: its denoiser defines P; any will do, such as `Mirrored(model)`.
        clean: images x on the levels k/(levels−1), shape (B, C, H, W).
        prior: the prior without noise.
        t0: where the decoder takes over, in pixel²; √t0 of about half a step is best for smooth models.
        t1: where the prior takes over, in pixel².
        strata: of ln t, one network evaluation each, beside the decoder's.
        generator: of the noise, on the images' device.
        levels: number of grey levels.
        dequantized: whether it is that of a density of x + u, for denoisers that learned to expect it: t0 can
            then be far below a step.

    Returns:
        The bound's parts.

    Raises:
        ValueError: if the images are not on their grey levels or the range of variances is empty.
    """
    check_bound(clean, t0, t1, levels)
    with torch.no_grad():
        if dequantized:
            uniform = torch.rand(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
            clean = dequantize(clean, uniform, levels)
        known = OwnGaussian(clean, prior.mean)
        draws = noise_in_strata(clean, t0, t1, strata, generator, mirrored=True)
        beyond = [
            denoising_loss(model, clean, z, t).double() - known.space_loss(t) - known.by_chance(z, t)
            for z, t in draws
        ]
        width = math.log(t1 / t0) / strata
        diffusion = diffusion_energy(torch.stack(beyond, dim=1), clean[0].numel(), width)
        diffusion = diffusion + known.diffusion(t0, t1)
        noise = normal_like(clean, generator)
        if dequantized:
            decoder = decode_density(model, clean, noise, t0) + clean[0].numel() * math.log(levels - 1)
        else:
            decoder = decode(model, clean, noise, t0, levels)
        return BoundTerms(decoder, diffusion, prior_divergence(clean, prior, t1))


def bound_of(
    model: ScoreModel,
    clean: Tensor,
    prior: StationaryGaussian,
    ends: tuple[float, float],
    strata: int,
    generator: torch.Generator,
) -> BoundTerms:
    """The bound of the best denoiser that a model has; arguments and errors as in `variational_bound`.

    That is its energy's gradient, or if it is of any size the mean of those of four orientations. Of an
    energy that knows the grey levels it is restrained, and the images x (B, C, H, W) are dequantized, as it
    expects. `ends` are the t_min and t_max that it learned between.
    """
    denoiser = mean_of_orientations(model) if of_any_size(model) else restrained(model)
    dequantized = knows_levels(model)
    t0, t1 = ends if dequantized else bound_range(ends)
    return variational_bound(
        denoiser, clean, prior, t0=t0, t1=t1, strata=strata, generator=generator, dequantized=dequantized
    )


def check_bound(clean: Tensor, t0: float, t1: float, levels: int) -> None:
    """Refuse images x (B, C, H, W) off their grey levels, or an empty range of variances: ValueError."""
    check_clean(clean, levels)
    if not 0.0 < t0 < t1:
        raise ValueError(f"noise variances need 0 < t0 < t1, got t0={t0}, t1={t1}")


def noise_in_strata(
    clean: Tensor,
    t0: float,
    t1: float,
    strata: int,
    generator: torch.Generator,
    *,
    mirrored: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise of its own, (B, C, H, W), and variances in pixel², (B,), for each stratum of ln t, rising.

    Variances are independent of each other, or `mirrored` in every two strata.
    """
    uniform = torch.rand(len(clean), strata, generator=generator, dtype=clean.dtype, device=clean.device)
    if mirrored:
        pairs = strata // 2 * 2
        uniform[:, 1:pairs:2] = 1.0 - uniform[:, 0:pairs:2]
    for t in stratified_variances(uniform, t0, t1).unbind(1):
        yield normal_like(clean, generator), t


def stratified_variances(uniform: Tensor, t0: float, t1: float) -> Tensor:
    """Noise variances, one in each of n equal strata of ln t, rising, from places in [0, 1), shape (B, n)."""
    strata = uniform.shape[1]
    stratum = torch.arange(strata, dtype=uniform.dtype, device=uniform.device)
    return log_uniform((stratum + uniform) / strata, t0, t1)


def diffusion_energy(space: Tensor, dimension: int, width: float) -> Tensor:
    """½ ∫ ‖x − x̂‖² dt/t² = ½ d ∫ (space loss) d ln t in nats, (B,), of one space loss a stratum (B, n)."""
    return 0.5 * dimension * width * space.sum(dim=1)


def prior_divergence(clean: Tensor, prior: StationaryGaussian, t1: float) -> Tensor:
    """KL(N(x, t1 I) ‖ N(μ, Σ + t1 I)) in nats, shape (B,), of images x (B, C, H, W)."""
    coefficients = prior.analyze(clean - prior.mean[:, None, None])
    spectrum = prior.eigenvalues
    # t1/(λ+t1) − 1 and ln((λ+t1)/t1), without cancellation where the spectrum is far below t1.
    terms = (coefficients.square() - spectrum) / (spectrum + t1) + torch.log1p(spectrum / t1)
    return 0.5 * terms.sum(dim=(1, 2, 3))


def decode(
    model: ScoreModel, clean: Tensor, noise: Tensor, noise_variance: float, levels: int = LEVELS
) -> Tensor:
    """The decoder, centred at x̂ and as wide as the denoiser expects to err: −log P(x | y) in nats, (B,).

    For the true score, E‖x − x̂‖² = t (d − t E‖∇U‖²) (Miyasawa 1961): v = t (1 − t‖∇U‖²/d), a function of y
    alone. Whatever the model, P(x | y) sums to one, so the bound on −log P(x) stays one. Here y = x + √t z,
    x and z are of shape (B, C, H, W), and t = t0.
    """
    centre, variance = _decoder(model, clean, noise, noise_variance)
    return decoder_energy(clean, centre, variance, levels)


def decode_density(model: ScoreModel, clean: Tensor, noise: Tensor, noise_variance: float) -> Tensor:
    """−log p(x | y) of images that have a density, in nats, (B,): N(x̂, v I), with x̂ and v as in `decode`."""
    centre, variance = _decoder(model, clean, noise, noise_variance)
    squares = (clean - centre).square().sum(dim=(1, 2, 3)) / variance
    return 0.5 * (squares + clean[0].numel() * torch.log(2.0 * math.pi * variance))


def _decoder(model: ScoreModel, clean: Tensor, noise: Tensor, noise_variance: float) -> tuple[Tensor, Tensor]:
    """The decoder's centre x̂ (B, C, H, W) and variance v (B,)."""
    t = torch.full_like(clean[:, 0, 0, 0], noise_variance)
    noisy = corrupt(clean, noise, t)
    gradient = model.gradients(noisy, t, time=False).image
    unexplained = 1.0 - noise_variance * gradient.square().mean(dim=(1, 2, 3))
    variance = decoder_variance(unexplained, noise_variance, clean)
    return noisy - noise_variance * gradient, variance


def decoder_variance(unexplained: Tensor, noise_variance: float, images: Tensor) -> Tensor:
    """The error v that the denoiser expects, t (1 − ‖y − x̂‖²/(t d)), from `unexplained`, that share, (B,).

    At least t √(2/d), as one draw of the share scatters by so much. Of a denoiser that fails, further from y
    than noise is, ‖y − x̂‖² − t d is about what it errs by: the same with the other sign.
    """
    scatter = min(1.0, math.sqrt(2.0 / images[0].numel()))
    return noise_variance * unexplained.abs().clamp(min=scatter)


def decoder_energy(clean: Tensor, centre: Tensor, variance: Tensor, levels: int = LEVELS) -> Tensor:
    """−log P(x | y) of P(k | y) ∝ exp(−(x̂ − k/(levels−1))² / 2v), pixel by pixel, over all grey levels k.

    From x on the levels and x̂, shape (B, C, H, W), and v > 0 in pixel², shape (B,): nats, shape (B,).
    """
    # In units of the step, against the nearest level n: nothing overflows, however far x̂ lies from x.
    c, k = centre * (levels - 1), (clean * (levels - 1)).round()
    n = c.round().clamp(0, levels - 1)
    double_variance = 2.0 * (levels - 1) ** 2 * variance[:, None, None, None]
    # A level at distance j of n weighs at most exp((¼ − (j − ½)²)/2v).
    # An image of which a diverged model says nothing finite must not change what is found of the others.
    widest = double_variance.detach().nan_to_num(0.0, 0.0).max().item()
    reach = 0.5 + math.sqrt(0.25 + _NEGLIGIBLE * widest)
    weights = torch.ones_like(c)
    for sign in (-1, 1):
        for offset in range(sign, sign * (min(levels - 1, math.ceil(reach)) + 1), sign):
            weight = torch.exp((2.0 * (c - n) - offset) * offset / double_variance)
            inside = (n + offset >= 0) & (n + offset <= levels - 1)
            weights += torch.where(inside, weight, 0.0)
    energy = (n - k) * (2.0 * c - n - k) / double_variance + torch.log(weights)
    return energy.flatten(1).sum(dim=1)


class Mirrored(ScoreModel):
    """x̂ = ½ (x̂(y) + flip x̂(flip y)), flipped left to right, of any model; it has no energy.

    Where the images' law is symmetric, it is the projection of x̂ onto symmetric denoisers, among which the
    posterior mean is: E‖x − x̂‖² does not rise at any t. It costs two evaluations instead of one.
    """

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """½ (g(y) + flip g(flip y)), (B, C, H, W): no energy and no ∂_t U, whatever `time` says."""
        straight = self.model.gradients(noisy, noise_variance, time=False).image
        flipped = self.model.gradients(noisy.flip(-1), noise_variance, time=False).image
        return Gradients(0.5 * (straight + flipped.flip(-1)), None)
