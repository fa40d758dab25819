r"""What a measurement says: samples of the images that it may be of, and how probable it is altogether.

Of y = A(x) + √v z with a linear A, and x of p(x | s), the model's images at the small noise variance s
where sampling ends, the posterior is p(x | s) N(y; A(x), v I) / p(y). The *evidence* p(y) is what models,
noise variances and blurs are compared by. Chains come down from noise as in `annealed`, led at t by the
density of y given x_t if images were of the training images' Gaussian. At s that is the measurement's own:
the mean of the chains' weights is p(y) without bias, if the energy is normalized, and the samples by their
weights are of the posterior as chains become many. Where weights grow uneven chains are chosen again by
them, in groups that don't mix: the groups' means are independent, and tell the error. Another group is not
weighed; it sets the steps of the others.

All is in the Gaussian's coefficients c of x − μ, of variances λ, and N(y; A(μ + c), v I) with matrices.
Source: Del Moral, Doucet, Jasra 2006, Sequential Monte Carlo samplers; Wu et al. 2023, arXiv 2306.17775, for
measurements that lead and are corrected.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import EnergyModel, Gradients, ScoreModel
from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.normalizer import LogMean, log_mean
from dualscore.model import ImageModel
from dualscore.noise import SAMPLING, normal_like, seeded_generator
from dualscore.sampling.annealed import contrast, first_step, followed, levels, mean_curvature, resample
from dualscore.sampling.linear_measurements import Forward, Guide, images_of, matrix_of, reduced
from dualscore.sampling.metropolis import evaluate, mala
from dualscore.sampling.sample_images import gaussian_start, last_variance

GROUPS = 8
FEWEST = 4
"""Chains of a group."""
LANGEVIN_STEPS, APART_STEPS = 2, 8
"""Metropolis steps at each level, and in the end, to lead apart what was chosen more than once."""
BATCH = 256
"""Chains that the network sees at once."""
LARGEST = 4096
"""Numbers of an image: matrices of them squared are inverted at every noise level."""
_MEASURED = -4  # second number of the random keys, beside that of samples
_UNEVEN = 0.5  # share of effective samples below which chains are chosen again


class Evidence(NamedTuple):
    """How probable a measurement is under a model, and images that it may be of."""

    log_evidence: float  # ln p(y), nats; where groups disagree, too low by about half their variance
    stderr: float
    """From the spread of independent groups, and log Z's."""
    effective_groups: float  # how many of the groups count, of `GROUPS`: below 4 the error is a guess
    images: Tensor
    """Samples of p(x | y), (chains, C, H, W), of equal weight; some may be of one ancestor, and alike."""


class Led(ScoreModel):
    """U and a guide, as an energy of coordinates u, c = L u, with LLᵀ about the covariance that is left.

    Args:
        model: U.
        prior: whose coefficients c are.
        guide: the measurement's part.
        factor: L, (d, d).
    """

    def __init__(self, model: ScoreModel, prior: StationaryGaussian, guide: Guide, factor: Tensor) -> None:
        super().__init__()
        self.model, self.prior, self.guide, self.factor = model, prior, guide, factor

    def coordinates(self, coefficients: Tensor) -> Tensor:
        """The coordinates u, shape (B, 1, 1, d), of coefficients (B, d)."""
        found: Tensor = torch.linalg.solve_triangular(self.factor, coefficients.mT, upper=True)
        return found.mT[:, None, None]

    def own(self, found: Gradients, coefficients: Tensor) -> Tensor:
        """∇U in the coefficients, shape (B, d), without the guide's part."""
        total: Tensor = torch.linalg.solve_triangular(self.factor.mT, found.image[:, 0, 0].mT, upper=False)
        return total.mT - self.guide(coefficients)[1]

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:
        """U + guide (B,), the gradient in u (B, 1, 1, d), and ∂_t U (B,), of u (B, 1, 1, d) at t (B,)."""
        coefficients = noisy.flatten(1) @ self.factor.mT
        images, t = images_of(coefficients, self.prior), noise_variance.to(self.prior.mean)
        parts = zip(torch.split(images, BATCH), torch.split(t, BATCH), strict=True)
        each = [self.model.gradients(*part, time=time) for part in parts]
        found = Gradients(*(None if got[0] is None else torch.cat(got) for got in zip(*each, strict=True)))  # type: ignore[arg-type]
        nats, pull = self.guide(coefficients)
        own = self.prior.analyze(found.image).flatten(1).to(noisy)
        energy = None if found.energy is None else found.energy.to(nats) + nats
        return Gradients(((own + pull) @ self.factor)[:, None, None], found.noise_variance, energy)


@torch.no_grad()
def evidence(
    model: ImageModel,
    measurement: Tensor,
    forward: Forward,
    noise_variance: float,
    *,
    chains: int = 128,
    steps: int = 100,
    seed: int = 0,
) -> Evidence:
    """Draw images that a measurement may be of, and estimate how probable it is: p(x | y) and ln p(y).

    Args:
        model: a normalized energy, with the Gaussian of its training images; of any size, `model.at(H, W)`.
        measurement: y = A(x) + √v z, of the shape that `forward` gives to one image, without a batch.
        forward: A, linear but for a constant, of images (B, C, H, W) of the model's type and device.
        noise_variance: v > 0, of the measurement's numbers.
        chains: samples, a multiple of 8, at least 32; an eighth as many again find the step size.
        steps: noise levels, each of which takes 3 evaluations of all chains.
        seed: of all that is random.

    Returns:
        ln p(y) with its error, and the samples, on the model's device. x has noise of variance s, that of
        rounding to 8 bits or the smallest that the model knows. A mass that is not one is counted.

    Raises:
        SamplingError: if the model lacks what this needs or is of too large images, A is not linear, shapes
            disagree, or what is found is not finite.
    """
    prior = gaussian_start(model)
    v = _checked(model, prior, chains, noise_variance)
    generator = seeded_generator(prior.mean.device, SAMPLING, _MEASURED, seed)
    schedule = levels(model.t_max, steps, last_variance(model.t_min))
    matrix, measured, constant = reduced(*matrix_of(forward, measurement, prior, generator), v)
    spectrum = prior.eigenvalues.flatten().to(matrix)
    last, count, size = schedule[-1], chains + chains // GROUPS, chains // GROUPS
    pilots = slice(0, size)

    def led(t: float, contrasts: float) -> Led:
        guide = Guide(matrix, measured, v, spectrum + last, t - last)
        precision = guide.hessian + torch.diag(1.0 / (contrasts * spectrum + t))
        return Led(model.score_model, prior, guide, _inverse_root(precision))

    def at(place: Led, coefficients: Tensor, t: float) -> Gradients:
        return evaluate(place, place.coordinates(coefficients), coefficients.new_full((count,), t))

    t = schedule[0]
    white = normal_like(matrix.new_zeros(count, len(spectrum)), generator)
    coefficients = white * (spectrum + t).sqrt()
    here = led(t, 1.0)
    found = at(here, coefficients, t)
    start = 0.5 * (white.square() + torch.log(2.0 * math.pi * (spectrum + t))).sum(dim=1)
    log_weight = start - _energy(found)
    log_mass = torch.zeros(GROUPS + 1).to(log_weight)
    relative = first_step(len(spectrum))
    for t, s in pairwise(schedule):
        own = here.own(found, coefficients)
        curvature = mean_curvature(found._replace(image=own[:, None, None]))
        assert curvature is not None
        beta = float(contrast(curvature[pilots].mean()[None], prior, t))
        here = led(s, beta)
        coefficients, ratio = _down(here, own, coefficients, (t, s), beta * spectrum, generator)
        there = at(here, coefficients, s)
        log_weight = log_weight + _energy(found) - _energy(there) + ratio
        found = there
        for group in range(GROUPS + 1):
            part = slice(group * size, (group + 1) * size)
            weight = _mean_weight(log_weight[part])
            if weight.share <= _UNEVEN:
                places = torch.arange(count, device=matrix.device)
                places[part] = resample(log_weight[part], generator) + part.start
                coefficients = coefficients[places]
                found = found.of(places)
                log_mass[group] += weight.value
                log_weight[part] = 0.0
        chain = mala(
            here, here.coordinates(coefficients), s, steps=LANGEVIN_STEPS, step_size=relative,
            generator=generator, found=found,
        )  # fmt: skip
        coefficients, found = chain.images[:, 0, 0] @ here.factor.mT, chain.found
        relative = followed(relative, chain.acceptance[pilots])
    log_weight = (log_weight + log_mass.repeat_interleave(size))[size:]
    each = log_weight.view(GROUPS, size).logsumexp(dim=1) - math.log(size)
    groups = _mean_weight(each)
    chosen = torch.cat([torch.arange(size).to(log_weight.device), size + resample(log_weight, generator)])
    chain = mala(
        here, here.coordinates(coefficients[chosen]), s, steps=APART_STEPS, step_size=relative,
        generator=generator, found=found.of(chosen),
    )  # fmt: skip
    images = images_of(chain.images[size:, 0, 0] @ here.factor.mT, prior)
    spread = max(groups.stderr, float(each.std()) / GROUPS**0.5)  # of weights, or of their logs if far apart
    stderr = math.hypot(spread, model.log_normalizer_stderr or 0.0)
    return Evidence(
        groups.value - float(model.log_normalizer or 0.0) - constant, stderr, groups.effective, images
    )


def _down(
    here: Led,
    own: Tensor,
    coefficients: Tensor,
    ends: tuple[float, float],
    clean: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw c_s given c_t (B, d) and y, images being Gaussian with variances `clean` (d,), led by ∇U at t.

    Also log N(c_t; c_s, (t−s) I) − log q(c_s | c_t), (B,).
    """
    t, s = ends
    spread = (t - s) * (clean + s) / (clean + t)
    factor = _inverse_root(here.guide.hessian + torch.diag(1.0 / spread))
    middle = coefficients - (t - s) * own
    middle = middle - (here.guide(middle)[1] @ factor) @ factor.mT
    white = normal_like(middle, generator)
    new = middle + white @ factor.mT
    forward = (new - coefficients).square().sum(dim=1) / (t - s) + len(clean) * math.log(t - s)
    back = white.square().sum(dim=1) + 2.0 * factor.diagonal().log().sum()
    return new, 0.5 * (back - forward)


def _inverse_root(precision: Tensor) -> Tensor:
    """L, (d, d), with LLᵀ the inverse of a symmetric positive matrix."""
    root = torch.linalg.cholesky(precision)
    eye = torch.eye(len(precision)).to(precision)
    inverse: Tensor = torch.linalg.solve_triangular(root.mT, eye, upper=True)
    return inverse


def _energy(found: Gradients) -> Tensor:
    assert found.energy is not None
    return found.energy


def _mean_weight(log_weight: Tensor) -> LogMean:
    try:
        return log_mean(log_weight)
    except ValueError as error:
        raise SamplingError(f"{error}; more steps may help") from error


def _checked(model: ImageModel, prior: StationaryGaussian, chains: int, noise_variance: float) -> float:
    """The noise variance as a number; SamplingError for what does not go."""
    if not isinstance(model.score_model, EnergyModel):
        raise SamplingError("the model is a denoiser: it has no energy, and gives no evidence")
    if chains < FEWEST * GROUPS or chains % GROUPS:
        raise SamplingError(f"{chains} chains: a multiple of {GROUPS}, at least {FEWEST * GROUPS}, is needed")
    if torch.as_tensor(noise_variance).numel() != 1 or not 0.0 < float(noise_variance) < math.inf:
        raise SamplingError(f"a measurement needs noise, of one variance above 0, not {noise_variance}")
    if model.log_normalizer is None or not math.isfinite(model.log_normalizer):
        raise SamplingError("the model's log Z is not known: model.normalize(images) estimates it")
    shape = tuple(prior.eigenvalues.shape)
    if model.normalized_shape not in (None, shape):
        raise SamplingError(
            f"the model's log Z is of images {model.normalized_shape}, its Gaussian of {shape}"
        )
    if prior.mean.dtype not in (torch.float32, torch.float64):
        raise SamplingError(f"{prior.mean.dtype} is too coarse for weights: model.float()")
    if (count := math.prod(shape)) > LARGEST:
        smaller = "; model.at(height, width) is of smaller ones" if model.any_size else ""
        raise SamplingError(
            f"the model is of images of {count:,} numbers, and {LARGEST:,} are the most, as matrices of them "
            f"squared are inverted at every level{smaller}"
        )
    return float(noise_variance)
