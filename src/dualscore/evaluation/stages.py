"""What is measured of each image: one stage a quantity, one row an image, nothing twice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dualscore.densities import GaussianMixture
from dualscore.energy import EnergyModel, ScoreModel
from dualscore.evaluation.store import Rows
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.images import dequantize
from dualscore.likelihood.bound import decode, prior_divergence, stratified_variances
from dualscore.likelihood.consistency import heat_residual
from dualscore.likelihood.ode import OdeEnergy, laplacian, ode_energy
from dualscore.noise import corrupt, fixed_noise, fixed_signs, fixed_uniform
from dualscore.objective import space_loss, time_loss

# Which of an image's independent draws a stage uses; strata take one each, from STRATA on.
NORMALIZER, LEVELS, DECODER, HEAT, ODE, STRATA, TRAIN = 0, 1, 2, 3, 4, 10, 10_000


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    model: ScoreModel
    """On the device, in the precision it is measured in."""
    prior: StationaryGaussian
    """Gaussian of the training images, on the same device."""
    density: GaussianMixture | None
    """The truth, where it is known, on the same device."""
    quantized: bool
    """Whether images are 8-bit."""
    dequantize: bool
    """Whether the model was trained on dequantized images."""
    t_range: tuple[float, float]
    """Smallest and largest noise variance in training, in pixel²."""
    seed: int

    @property
    def energy(self) -> EnergyModel:
        """The model, which must be an energy."""
        assert isinstance(self.model, EnergyModel)
        return self.model


@dataclass(frozen=True)
class Images:
    """A batch of clean pixels, and which images they are."""

    clean: Tensor
    """Pixels in [0, 1], shape (B, C, H, W), on the device."""
    position: list[int]
    split: str = "val"

    def _draw(self, draw: int) -> int:
        # Training images choose t0 and t1: their noise must not be that of the images they choose for.
        return draw + (TRAIN if self.split == "train" else 0)

    def noise(self, subject: Subject, draw: int) -> Tensor:
        """Standard normal noise that belongs to these images."""
        shape = self.clean.shape[1:]
        return fixed_noise(self.position, shape, subject.seed, self._draw(draw)).to(self.clean)

    def uniform(self, subject: Subject, shape: Sequence[int], draw: int) -> Tensor:
        """Uniform numbers that belong to these images."""
        return fixed_uniform(self.position, shape, subject.seed, self._draw(draw)).to(self.clean)

    def probe(self, subject: Subject, draw: int) -> Tensor:
        """Hutchinson's probes that belong to these images."""
        signs = fixed_signs(self.position, self.clean.shape[1:], subject.seed, draw)
        return subject.prior.synthesize(signs.to(self.clean))

    def with_density(self, subject: Subject, draw: int = 0) -> Tensor:
        """The images spread over their quantisation step, if they have one."""
        if not subject.quantized:
            return self.clean
        return dequantize(self.clean, self.uniform(subject, self.clean.shape[1:], draw))

    def as_trained(self, subject: Subject) -> Tensor:
        """The images as the model saw them in training: dequantized or not."""
        return self.with_density(subject) if subject.dequantize else self.clean

    def constant(self, t: float) -> Tensor:
        """A noise variance for each image, shape (B,)."""
        return torch.full_like(self.clean[:, 0, 0, 0], t)


@dataclass(frozen=True)
class Stage:
    """One quantity, measured of evenly spaced images of a split."""

    name: str
    split: str
    count: int
    """Images."""
    measure: Callable[[Subject, Images], Rows]
    settings: dict[str, Any] = field(default_factory=dict)
    """What decides the figures, beside the model, the data and the seed; plain values."""
    batch_divisor: int = 1
    """How many times smaller batches are than elsewhere, where an image takes more memory."""


def clean_energies(split: str, count: int, name: str) -> Stage:
    """U(x, 0) on the pixel lattice, the one evaluation of the paper's protocol."""

    def measure(subject: Subject, images: Images) -> Rows:
        with torch.no_grad():
            return {"energy": subject.energy(images.clean, images.constant(0.0))}

    return Stage(name, split, count, measure)


def noisy_energies(variances: list[float], count: int, name: str, split: str = "val") -> Stage:
    """U(y, t) at large noise variances, of one noise an image, for log Z."""

    def measure(subject: Subject, images: Images) -> Rows:
        noise = images.noise(subject, NORMALIZER)
        energies = []
        with torch.no_grad():
            for variance in variances:
                t = images.constant(variance)
                energies.append(subject.energy(corrupt(images.clean, noise, t), t))
        square = noise.double().square().sum(dim=(1, 2, 3))
        return {"energy": torch.stack(energies, dim=1), "noise_square": square}

    return Stage(name, split, count, measure, {"variances": variances})


def noise_levels(variances: list[float], count: int, heat: bool) -> Stage:
    """Both losses at each noise level and, of the same derivatives, the energy and the heat equation.

    An image has one noise for all its levels: differences between levels are then nearly free of it.
    """

    def measure(subject: Subject, images: Images) -> Rows:
        clean, noise = images.as_trained(subject), images.noise(subject, LEVELS)
        probe = images.probe(subject, HEAT) if heat else None
        rows: dict[str, list[Tensor]] = {}
        for variance in variances:
            for name, values in _level(subject, clean, noise, images.constant(variance), probe).items():
                rows.setdefault(name, []).append(values)
        return {name: torch.stack(values, dim=1) for name, values in rows.items()}

    settings = {"variances": variances, "heat": heat}
    return Stage("noise_levels", "val", count, measure, settings, 2 if heat else 1)


def _level(subject: Subject, clean: Tensor, noise: Tensor, t: Tensor, probe: Tensor | None) -> Rows:
    noisy = corrupt(clean, noise, t)
    rows: Rows = {}
    if probe is None:
        with torch.no_grad():
            found = subject.model.gradients(noisy, t)
    else:
        found, curvature = laplacian(subject.model, noisy, t, probe, time=True)
        if found.noise_variance is not None:
            rows["heat"] = heat_residual(found, curvature, t)
    rows["space"] = space_loss(found.image, noise, t)
    if found.noise_variance is not None:
        rows["time"] = time_loss(found.noise_variance, noise, t)
    if found.energy is not None:
        rows["energy"] = found.energy
    if subject.density is not None:
        with torch.no_grad():
            rows["truth"] = subject.density(noisy, t + _extra_variance(subject))
    return rows


def _extra_variance(subject: Subject) -> float:
    """Variance that rounding and dequantizing add to a known density's images."""
    return QUANTIZATION_VARIANCE * (int(subject.quantized) + int(subject.dequantize))


def strata(split: str, count: int, number: int, span: tuple[int, int], name: str, as_trained: bool) -> Stage:
    """The denoiser's error at one noise variance in each stratum of ln t, those in `span` of `number`.

    The bound is of the images themselves; the checks compare with energies of images as the model saw them.
    """
    first, last = span

    def measure(subject: Subject, images: Images) -> Rows:
        clean = images.as_trained(subject) if as_trained else images.clean
        uniform = images.uniform(subject, (number,), STRATA)
        variances = stratified_variances(uniform.double(), *subject.t_range)[:, first:last]
        space = []
        with torch.no_grad():
            for stratum, t in enumerate(variances.to(clean).unbind(1), start=first):
                noise = images.noise(subject, STRATA + stratum)
                gradient = subject.model.gradients(corrupt(clean, noise, t), t, time=False).image
                space.append(space_loss(gradient, noise, t))
        return {"variance": variances, "space": torch.stack(space, dim=1)}

    settings = {"number": number, "span": list(span), "as_trained": as_trained}
    return Stage(name, split, count, measure, settings)


def ends(split: str, count: int, starts: list[float], stops: list[float], name: str) -> Stage:
    """The bound's decoder at each candidate t0 and its prior at each candidate t1."""

    def measure(subject: Subject, images: Images) -> Rows:
        noise = images.noise(subject, DECODER)
        with torch.no_grad():
            decoders = [decode(subject.model, images.clean, noise, t0) for t0 in starts]
        priors = [prior_divergence(images.clean, subject.prior, t1) for t1 in stops]
        return {"decoder": torch.stack(decoders, dim=1), "prior": torch.stack(priors, dim=1)}

    return Stage(name, split, count, measure, {"starts": starts, "stops": stops})


def dequantized_energies(count: int, draws: int) -> Stage:
    """U(x + (u − ½)/255, 0) of several independent u an image."""

    def measure(subject: Subject, images: Images) -> Rows:
        t = images.constant(0.0)
        with torch.no_grad():
            energies = [subject.energy(images.with_density(subject, draw), t) for draw in range(draws)]
        return {"energy": torch.stack(energies, dim=1)}

    return Stage("dequantized", "val", count, measure, {"draws": draws})


def ode_energies(count: int, tolerance: float) -> Stage:
    """−log p of the dequantized images by the probability-flow ODE."""

    def solve(subject: Subject, x: Tensor, probe: Tensor) -> OdeEnergy:
        t_min, t_max = subject.t_range
        return ode_energy(
            subject.model, x, subject.prior, probe, t_min=t_min, t_max=t_max, tolerance=tolerance
        )

    def measure(subject: Subject, images: Images) -> Rows:
        x, probe = images.with_density(subject), images.probe(subject, ODE)
        try:
            found = solve(subject, x, probe)
            return {"energy": found.energy, "evaluations": torch.full_like(found.energy, found.evaluations)}
        except AssertionError:  # torchdiffeq's words for a step that vanished or a state that is not finite
            energies, evaluations = [], []
            for one, signs in zip(torch.split(x, 1), torch.split(probe, 1), strict=True):
                try:
                    alone = solve(subject, one, signs)
                except AssertionError:
                    alone = OdeEnergy(torch.full_like(one[:, 0, 0, 0], math.nan), 0)
                energies.append(alone.energy.double())
                evaluations.append(float(alone.evaluations))
            return {"energy": torch.cat(energies), "evaluations": torch.tensor(evaluations)}

    return Stage("ode", "val", count, measure, {"tolerance": tolerance})


def true_energies(count: int) -> Stage:
    """The known density's own energies: of 8-bit images, of the probability of their cell; no network.

    A cell is one step wide, and averaging a density over it is, up to fourth-order cumulants, adding normal
    noise of the step's variance: −log P(x) = U(x, step²/12) − d log(step).
    """

    def measure(subject: Subject, images: Images) -> Rows:
        assert subject.density is not None
        t = images.constant(QUANTIZATION_VARIANCE if subject.quantized else 0.0)
        with torch.no_grad():
            energy = subject.density(images.clean, t)
            return {"energy": energy, "component": subject.density.component(images.clean, t)}

    return Stage("truth", "val", count, measure)
