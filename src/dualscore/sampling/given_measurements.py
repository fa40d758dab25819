r"""What a measurement says: samples of the images that it may be of, and how probable it is altogether.

Of y = A(x) + √v z with a linear A, and x of p(x | s), the model's images at the small noise variance s
where sampling ends, the posterior is p(x | s) N(y; A(x), v I) / p(y). The *evidence* p(y) is what models,
noise variances and blurs are compared by. Chains come down from noise as in `annealed`, led at t by the
density of y given x_t if images were of the training images' Gaussian. At s that is the measurement's own:
weights make the samples exact, whatever led them on the way, and their mean is p(y) if the energy is
normalized. Where weights grow uneven chains are chosen again by them, in groups that don't mix: the groups'
means are independent, and tell the error. Another group is not weighed; it sets the steps of the others.

All is in the Gaussian's coefficients c of x − μ, of variances λ, and N(y; A(μ + c), v I) with matrices.
Source: Del Moral, Doucet, Jasra 2006, Sequential Monte Carlo samplers; Wu et al. 2023, arXiv 2306.17775, for
measurements that lead and are corrected.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import Gradients, ScoreModel
from dualscore.errors import SamplingError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.normalizer import LogMean, log_mean
from dualscore.model import ImageModel
from dualscore.noise import SAMPLING, normal_like, seeded_generator
from dualscore.sampling.annealed import BEST_ACCEPTANCE, contrast, levels, resample
from dualscore.sampling.metropolis import evaluate, mala
from dualscore.sampling.sample_images import Method, check_energy, gaussian_start, last_variance

Forward = Callable[[Tensor], Tensor]
"""A(x): images (B, C, H, W) to measurements (B, …), linear, or linear and a constant."""
GROUPS = 8
LANGEVIN_STEPS = 2
LARGEST = 4096
"""Numbers of an image: matrices of them squared are inverted at every noise level."""
_MEASURED = -4  # second number of the random keys, beside that of samples
_UNEVEN = 0.5  # share of effective samples below which chains are chosen again
_PATIENCE = 0.5  # how far the step size follows one level's acceptance, in nats


class Evidence(NamedTuple):
    """How probable a measurement is under a model, and images that it may be of."""

    log_evidence: float  # ln p(y), nats
    stderr: float  # its standard error, from the spread of independent groups
    effective_groups: float  # how many of the groups count, of `GROUPS`: below 4 the error is a guess
    images: Tensor  # samples of p(x | y), equally weighted, (chains, C, H, W)


class Guide:
    """−ln N(y; A E[x | x_t], v I + A Cov[x | x_t] Aᵀ) at one noise variance, images being Gaussian.

    Args:
        matrix: of A in the coefficients, (m, d).
        measured: y − A(μ), (m,).
        noise_variance: v.
        variances: λ + s of the coefficients, (d,).
        added: t − s.
    """

    def __init__(
        self, matrix: Tensor, measured: Tensor, noise_variance: float, variances: Tensor, added: float
    ) -> None:
        share = variances / (variances + added)
        told = noise_variance * torch.eye(len(matrix)).to(matrix) + (matrix * (share * added)) @ matrix.mT
        factor = torch.linalg.cholesky(told)
        self.matrix = torch.linalg.solve_triangular(factor, matrix * share, upper=False)
        self.measured = torch.linalg.solve_triangular(factor, measured[:, None], upper=False)[:, 0]
        self.constant = float(factor.diagonal().log().sum()) + 0.5 * len(matrix) * math.log(2.0 * math.pi)
        self.hessian = self.matrix.mT @ self.matrix

    def __call__(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Nats (B,) of coefficients (B, d), and their gradient (B, d)."""
        off = coefficients @ self.matrix.mT - self.measured
        return 0.5 * off.square().sum(dim=1) + self.constant, off @ self.matrix


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

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:
        """U + guide (B,), the gradient in u (B, 1, 1, d), and ∂_t U (B,), of u (B, 1, 1, d) at t (B,)."""
        coefficients = noisy.flatten(1) @ self.factor.mT
        images = _images(coefficients, self.prior)
        found = self.model.gradients(images, noise_variance.to(images), time=time)
        nats, pull = self.guide(coefficients)
        own = self.prior.analyze(found.image).flatten(1).to(noisy)
        energy = None if found.energy is None else found.energy.to(nats) + nats
        return Gradients(((own + pull) @ self.factor)[:, None, None], found.noise_variance, energy)


def _images(coefficients: Tensor, prior: StationaryGaussian) -> Tensor:
    own = coefficients.view(-1, *prior.eigenvalues.shape).to(prior.eigenvalues)
    return prior.synthesize(own) + prior.mean[:, None, None]


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
        model: a normalized energy, with the Gaussian of its training images.
        measurement: y = A(x) + √v z, of the shape that `forward` gives to one image, without a batch.
        forward: A, linear, of images (B, C, H, W), in the model's precision and on its device.
        noise_variance: v > 0, of the measurement's numbers.
        chains: samples, a multiple of 8; an eighth as many again find the step size.
        steps: noise levels, each of which takes 4 evaluations of all chains.
        seed: of all that is random.

    Returns:
        ln p(y) with its error, and the samples, on the model's device.

    Raises:
        SamplingError: if the model lacks what this needs or is of too large images, A is not linear, shapes
            disagree, or what is found is not finite.
    """
    prior = gaussian_start(model)
    check_energy(model, Method.metropolis)
    _check(model, prior, chains, noise_variance)
    generator = seeded_generator(prior.mean.device, SAMPLING, _MEASURED, seed)
    schedule = levels(model.t_max, steps, last_variance(model.t_min))
    matrix, measured = _linear(forward, measurement, prior, generator)
    spectrum = prior.eigenvalues.flatten().to(matrix)
    last, count, size = schedule[-1], chains + chains // GROUPS, chains // GROUPS
    pilots = slice(0, size)

    def led(t: float, contrasts: float) -> Led:
        guide = Guide(matrix, measured, noise_variance, spectrum + last, t - last)
        precision = guide.hessian + torch.diag(1.0 / (contrasts * spectrum + t))
        return Led(model.score_model, prior, guide, _inverse_root(precision))

    def at(place: Led, coefficients: Tensor, t: float) -> Gradients:
        own = torch.linalg.solve(place.factor, coefficients.mT).mT[:, None, None]
        return evaluate(place, own, own.new_full((count,), t))

    t = schedule[0]
    white = normal_like(matrix.new_zeros(count, len(spectrum)), generator)
    coefficients = white * (spectrum + t).sqrt()
    here = led(t, 1.0)
    found = at(here, coefficients, t)
    start = 0.5 * (white.square() + torch.log(2.0 * math.pi * (spectrum + t))).sum(dim=1)
    log_weight = start - _energy(found)
    log_mass = torch.zeros(GROUPS + 1).to(log_weight)
    relative = 1.65**2 * len(spectrum) ** (-1 / 3)
    for t, s in pairwise(schedule):
        own = _own(here, found, coefficients)
        beta = float(contrast(_curvature(own, found)[pilots].mean()[None], prior, t))
        here = led(s, beta)
        coefficients, ratio = _down(here, own, coefficients, (t, s), beta * spectrum, generator)
        there = at(here, coefficients, s)
        log_weight = log_weight + _energy(found) - _energy(there) + ratio
        found = there
        for group in range(GROUPS + 1):
            part = slice(group * size, (group + 1) * size)
            weight = _mean_weight(log_weight[part])
            if weight.share < _UNEVEN:
                places = torch.arange(count, device=matrix.device)
                places[part] = resample(log_weight[part], generator) + part.start
                coefficients = coefficients[places]
                found = Gradients(*(None if value is None else value[places] for value in found))  # type: ignore[arg-type]
                log_mass[group] += weight.value
                log_weight[part] = 0.0
        own_place = torch.linalg.solve(here.factor, coefficients.mT).mT[:, None, None]
        chain = mala(
            here, own_place, s, steps=LANGEVIN_STEPS, step_size=relative, generator=generator, found=found
        )
        coefficients, found = chain.images[:, 0, 0] @ here.factor.mT, chain.found
        relative *= math.exp(_PATIENCE * (float(chain.acceptance[pilots].mean()) - BEST_ACCEPTANCE))
    log_weight = (log_weight + log_mass.repeat_interleave(size))[size:]
    groups = _mean_weight(log_weight.view(GROUPS, size).logsumexp(dim=1) - math.log(size))
    chosen = coefficients[size:][resample(log_weight, generator)]
    value = groups.value - float(model.log_normalizer or 0.0)
    return Evidence(value, groups.stderr, groups.effective, _images(chosen, prior))


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
    back = white.square().sum(dim=1) + 2.0 * torch.linalg.slogdet(factor).logabsdet
    return new, 0.5 * (back - forward)


def _inverse_root(precision: Tensor) -> Tensor:
    """L, (d, d), with LLᵀ the inverse of a symmetric positive matrix."""
    root = torch.linalg.cholesky(precision)
    eye = torch.eye(len(precision)).to(precision)
    inverse: Tensor = torch.linalg.solve_triangular(root.mT, eye, upper=True)
    return inverse


def _own(place: Led, found: Gradients, coefficients: Tensor) -> Tensor:
    """∇U in the coefficients (B, d), without the guide's part."""
    total: Tensor = torch.linalg.solve(place.factor.mT, found.image[:, 0, 0].mT).mT
    return total - place.guide(coefficients)[1]


def _curvature(own: Tensor, found: Gradients) -> Tensor:
    """ΔU/d (B,): by the heat equation, see `annealed`."""
    assert found.noise_variance is not None
    return (2.0 * found.noise_variance.to(own) + own.square().sum(dim=1)) / own.shape[1]


def _energy(found: Gradients) -> Tensor:
    assert found.energy is not None
    return found.energy


def _mean_weight(log_weight: Tensor) -> LogMean:
    try:
        return log_mean(log_weight)
    except ValueError as error:
        raise SamplingError(f"{error}; more steps may help") from error


def _linear(
    forward: Forward, measurement: Tensor, prior: StationaryGaussian, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A's matrix in the coefficients (m, d), and y − A(μ), (m,), in double precision."""
    shape = prior.eigenvalues.shape
    base = forward(prior.mean[:, None, None].expand(1, *shape))
    if base.shape[1:] != measurement.shape:
        raise SamplingError(
            f"A gives shape {tuple(base.shape[1:])} to an image, and the measurement has "
            f"{tuple(measurement.shape)}"
        )
    basis = torch.split(torch.eye(shape.numel()).to(prior.mean), 256)
    rows = [forward(_images(some, prior)) - base for some in basis]
    matrix = torch.cat(rows).flatten(1).mT.double()
    try_on = normal_like(matrix.new_zeros(1, shape.numel()), generator)
    told, expected = (forward(_images(try_on, prior)) - base).flatten().to(matrix), matrix @ try_on[0]
    if float((told - expected).norm()) > 1e-3 * float(expected.norm()):
        raise SamplingError("A is not linear: A(x + z) − A(x) is not the sum of what its pixels make")
    return matrix, (measurement.to(base) - base[0]).flatten().to(matrix)


def _check(model: ImageModel, prior: StationaryGaussian, chains: int, noise_variance: float) -> None:
    if chains < 2 * GROUPS or chains % GROUPS:
        raise SamplingError(f"{chains} chains: a multiple of {GROUPS}, at least {2 * GROUPS}, is needed")
    if not 0.0 < noise_variance < math.inf:
        raise SamplingError(f"a measurement needs noise: its variance is {noise_variance}")
    if model.log_normalizer is None:
        raise SamplingError("the model's log Z is not known: model.normalize(images) estimates it")
    if (count := prior.eigenvalues.numel()) > LARGEST:
        raise SamplingError(
            f"images of {count:,} numbers: at most {LARGEST:,}, as matrices of them squared are inverted at "
            "every level"
        )
