"""The quantities that estimates are made of: each draws one row an image, nothing twice."""

import math

import torch
from torch import Tensor

from dualscore.energy import EnergyModel, ScoreModel
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood.bound import Mirrored, decode, prior_divergence, stratified_variances
from dualscore.likelihood.certificate import bounded_space, decode_bounded
from dualscore.likelihood.consistency import energy_deviation
from dualscore.likelihood.ode import ode_energy
from dualscore.measuring.subject import (
    CERTIFICATE,
    DECODER,
    LEVELS,
    NORMALIZER,
    ODE,
    STRATA,
    Images,
    Rows,
    Stage,
    Subject,
)
from dualscore.noise import GOLDEN_RATIO, corrupt, log_uniform
from dualscore.objective import denoising_loss, space_loss, time_loss


def clean_energies(split: str, count: int, name: str) -> Stage:
    """U(x, 0) on the pixel lattice, the one evaluation of the paper's protocol."""

    def measure(subject: Subject, images: Images) -> Rows:
        with torch.no_grad():
            return {"energy": subject.energy(images.clean, images.constant(0.0))}

    return Stage(name, split, count, measure)


def noisy_energies(variances: list[float], split: str, count: int, name: str) -> Stage:
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


def noise_levels(variances: list[float], split: str, count: int) -> Stage:
    """Both losses at each noise level, what they are made of and, where there is one, the energy.

    An image has one noise for all its levels: differences between levels are then nearly free of it.
    """

    def measure(subject: Subject, images: Images) -> Rows:
        clean, noise = images.as_trained(subject), images.noise(subject, LEVELS)
        found = [at_level(subject, clean, noise, images.constant(variance)) for variance in variances]
        return {name: torch.stack([rows[name] for rows in found], dim=1) for name in found[0]}

    return Stage("noise_levels", split, count, measure, {"variances": variances, "moments": True})


def at_level(subject: Subject, clean: Tensor, noise: Tensor, t: Tensor) -> Rows:
    """The figures of images (B, C, H, W) at noise variances t (B,): losses, energy and moments, each (B,)."""
    noisy = corrupt(clean, noise, t)
    with torch.no_grad():
        found = subject.model.gradients(noisy, t)
        rows: Rows = {
            "space": space_loss(found.image, noise, t),
            "noise_square": noise.double().square().mean(dim=(1, 2, 3)),
            "gradient_square": t.double() * found.image.double().square().mean(dim=(1, 2, 3)),
        }
        if found.noise_variance is not None:
            rows["time"] = time_loss(found.noise_variance, noise, t)
            rows["slope"] = t * found.noise_variance / clean[0].numel()
        if found.energy is not None:
            rows["energy"] = found.energy
            rows["linear"] = energy_deviation(subject.prior, clean, noise, t)
        if subject.density is not None:
            # Rounding and dequantizing add to a known density's images.
            extra = QUANTIZATION_VARIANCE * (int(subject.quantized) + int(subject.dequantize))
            rows["truth"] = subject.density(noisy, t + extra)
    return rows


def one_level(variances: list[float], split: str, count: int) -> Stage:
    """Both losses on the cheap: each image at one of the levels, which the images share."""

    def measure(subject: Subject, images: Images) -> Rows:
        assert images.ordinal is not None
        level = images.ordinal.cpu() % len(variances)
        t = torch.tensor(variances, dtype=torch.float64)[level].to(images.clean)
        rows = at_level(subject, images.clean, images.noise(subject, LEVELS), t)
        return {"level": level, **{name: rows[name] for name in ("space", "time") if name in rows}}

    return Stage("one_level", split, count, measure, {"variances": variances})


def _denoiser(subject: Subject, mirror: bool) -> ScoreModel:
    return Mirrored(subject.model) if mirror else subject.model


def _mirrored(mirror: bool) -> dict[str, bool]:
    """The mirror's entry in a stage's settings; none without it, as in rows of earlier versions."""
    return {"mirror": True} if mirror else {}


def strata(split: str, count: int, number: int, span: tuple[int, int], name: str, mirror: bool) -> Stage:
    """The denoiser's error at one noise variance in each stratum of ln t, those in `span` of `number`."""
    first, last = span

    def measure(subject: Subject, images: Images) -> Rows:
        clean, model = images.clean, _denoiser(subject, mirror)
        uniform = images.uniform(subject, (number,), STRATA)
        variances = stratified_variances(uniform.double(), *subject.t_range)[:, first:last]
        space = []
        with torch.no_grad():
            for stratum, t in enumerate(variances.to(clean).unbind(1), start=first):
                noise = images.noise(subject, STRATA + stratum)
                space.append(denoising_loss(model, clean, noise, t))
        return {"variance": variances, "space": torch.stack(space, dim=1)}

    settings = {"number": number, "span": list(span), "as_trained": False} | _mirrored(mirror)
    return Stage(name, split, count, measure, settings)


def one_stratum(t0: float, t1: float, number: int, split: str, count: int) -> Stage:
    """The bound's integral on the cheap: each image in one of the strata of ln t that they share."""

    def measure(subject: Subject, images: Images) -> Rows:
        assert images.ordinal is not None
        ordinal = images.ordinal.cpu()
        place = (ordinal // number * GOLDEN_RATIO) % 1.0  # spread evenly over each stratum, the same always
        stratum = ordinal % number
        t = log_uniform((stratum + place.double()) / number, t0, t1).to(images.clean)
        noise = images.noise(subject, DECODER)
        with torch.no_grad():
            space = denoising_loss(subject.model, images.clean, noise, t)
        return {"stratum": stratum, "stratum_space": space}

    return Stage("one_stratum", split, count, measure, {"t0": t0, "t1": t1, "number": number})


def ends(
    split: str, count: int, starts: list[float], stops: list[float], name: str, mirror: bool = False
) -> Stage:
    """The bound's decoder at each candidate t0 and its prior at each candidate t1."""

    def measure(subject: Subject, images: Images) -> Rows:
        noise, model = images.noise(subject, DECODER), _denoiser(subject, mirror)
        with torch.no_grad():
            decoders = [decode(model, images.clean, noise, t0) for t0 in starts]
        priors = [prior_divergence(images.clean, subject.prior, t1) for t1 in stops]
        return {"decoder": torch.stack(decoders, dim=1), "prior": torch.stack(priors, dim=1)}

    settings = {"starts": starts, "stops": stops} | _mirrored(mirror)
    return Stage(name, split, count, measure, settings)


def certificate(split: str, count: int, span: tuple[float, float], number: int, mirror: bool) -> Stage:
    """Draws of the bound with known ranges, for a limit on it that holds whatever their law."""
    t0, t1 = span

    def measure(subject: Subject, images: Images) -> Rows:
        clean, model = images.clean, _denoiser(subject, mirror)
        uniform = images.uniform(subject, (number,), CERTIFICATE).double()
        with torch.no_grad():
            space = [
                bounded_space(model, clean, images.noise(subject, CERTIFICATE + 1 + stratum), t)
                for stratum, t in enumerate(stratified_variances(uniform, t0, t1).to(clean).unbind(1))
            ]
            decoder = decode_bounded(model, clean, images.noise(subject, CERTIFICATE), t0)
        return {
            "decoder": decoder,
            "space": torch.stack(space, dim=1),
            "prior": prior_divergence(clean, subject.prior, t1),
        }

    settings = {"span": list(span), "number": number} | _mirrored(mirror)
    return Stage("certificate", split, count, measure, settings)


def dequantized_energies(split: str, count: int, draws: int) -> Stage:
    """U(x + (u − ½)/255, 0) of several independent u an image."""

    def measure(subject: Subject, images: Images) -> Rows:
        t = images.constant(0.0)
        with torch.no_grad():
            energies = [subject.energy(images.with_density(subject, draw), t) for draw in range(draws)]
        return {"energy": torch.stack(energies, dim=1)}

    return Stage("dequantized", split, count, measure, {"draws": draws})


def ode_energies(split: str, count: int, tolerance: float) -> Stage:
    """−log p of the dequantized images by the probability-flow ODE, and its network evaluations."""

    def solve(subject: Subject, x: Tensor, probe: Tensor) -> Rows:
        t_min, t_max = subject.t_range
        try:
            found = ode_energy(
                subject.model, x, subject.prior, probe, t_min=t_min, t_max=t_max, tolerance=tolerance
            )
        except AssertionError:  # torchdiffeq's words for a step that vanished or a state that is not finite
            if len(x) == 1:
                return {"energy": x.new_full((1,), math.nan), "evaluations": x.new_zeros(1)}
            alone = [
                solve(subject, *one) for one in zip(torch.split(x, 1), torch.split(probe, 1), strict=True)
            ]
            return {name: torch.cat([rows[name].double() for rows in alone]) for name in alone[0]}
        return {"energy": found.energy, "evaluations": torch.full_like(found.energy, found.evaluations)}

    def measure(subject: Subject, images: Images) -> Rows:
        return solve(subject, images.with_density(subject), images.probe(subject, ODE))

    return Stage("ode", split, count, measure, {"tolerance": tolerance})


def true_energies(split: str, count: int) -> Stage:
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

    return Stage("truth", split, count, measure)


def validation_stages(
    subject: Subject, levels: list[float], span: tuple[float, float], strata_shared: int
) -> list[Stage]:
    """What a validation measures of each image on the cheap, in order; `span` is the bound's t0 and t1."""
    stages = [one_level(levels, "val", 0)]
    if isinstance(subject.model, EnergyModel):
        stages += [
            clean_energies("val", 0, "paper"),
            noisy_energies([subject.t_range[1]], "val", 0, "normalizer"),
        ]
    if subject.quantized:
        t0, t1 = span
        stages += [one_stratum(t0, t1, strata_shared, "val", 0), ends("val", 0, [t0], [t1], "ends")]
    return stages
