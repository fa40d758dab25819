"""The quantities that estimates and checks are made of: each draws one row an image, nothing twice."""

import math

import torch
from torch import Tensor

from dualscore.energy import normalized_by_form
from dualscore.errors import FlowError
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood.bound import decode, decode_density, prior_divergence, stratified_variances
from dualscore.likelihood.certificate import bounded_space, decode_bounded
from dualscore.likelihood.ode import laplacian, ode_energy
from dualscore.measuring.consistency import (
    aligned_strata,
    energy_deviation,
    heat_residual,
    linear_deviation,
    rank,
    window,
)
from dualscore.measuring.mass import importance_weights, normalizer_variances, weigh_chains
from dualscore.measuring.measured import Measured
from dualscore.measuring.subject import (
    AGAIN,
    CALIBRATION,
    CERTIFICATE,
    DECODER,
    HEAT,
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

WIDEST_STRATUM = 1.6  # nats of ln t, at most, of a stratum in which the denoiser is measured once a draw
GAUSSIAN_DRAWS = 512  # for log Z at large noise


def clean_energies(subject: Subject, images: Images) -> Rows:
    """U(x, 0) on the pixel lattice, the one evaluation of the paper's protocol."""
    return {"energy": subject.energy(images.clean, images.constant(0.0))}


def noisy_energies(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """U(y, t) at large noise variances, of one noise an image, for log Z."""
    noise, levels = images.noise(subject, NORMALIZER), map(images.constant, variances)
    energies = [subject.energy(corrupt(images.clean, noise, t), t) for t in levels]
    square = noise.double().square().sum(dim=(1, 2, 3))
    return {"energy": torch.stack(energies, dim=1), "noise_square": square}


def noise_levels(variances: list[float], split: str, count: int) -> Stage:
    """Both losses at each noise level, what they are made of and, where there is one, the energy.

    An image has one noise for all its levels: differences between levels are then nearly free of it.
    """
    return Stage("noise_levels", split, count, _noise_levels, {"variances": variances}, {"moments": True})


def _noise_levels(subject: Subject, images: Images, variances: list[float]) -> Rows:
    clean, noise = images.as_trained(subject), images.noise(subject, LEVELS)
    found = [at_level(subject, clean, noise, images.constant(variance)) for variance in variances]
    return {name: torch.stack([rows[name] for rows in found], dim=1) for name in found[0]}


def at_level(subject: Subject, clean: Tensor, noise: Tensor, t: Tensor) -> Rows:
    """The figures of images (B, C, H, W) at noise variances t (B,): losses, energy and moments, each (B,)."""
    noisy = corrupt(clean, noise, t)
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


def one_level(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """Both losses on the cheap: each image at one of the levels, which the images share."""
    assert images.ordinal is not None
    level = images.ordinal.cpu() % len(variances)
    t = torch.tensor(variances, dtype=torch.float64)[level].to(images.clean)
    rows = at_level(subject, images.clean, images.noise(subject, LEVELS), t)
    return {"level": level, **{name: rows[name] for name in ("space", "time") if name in rows}}


def strata(
    subject: Subject, images: Images, number: int, span: tuple[int, int], mirror: bool | str = False
) -> Rows:
    """The denoiser's error at one noise variance in each stratum of ln t, those in `span` of `number`."""
    (first, last), model = span, subject.denoiser(mirror)
    uniform = images.uniform(subject, (number,), STRATA).double()
    variances = stratified_variances(uniform, *subject.t_range)[:, first:last]
    space = [
        denoising_loss(model, images.clean, images.noise(subject, STRATA + stratum), t)
        for stratum, t in enumerate(variances.to(images.clean).unbind(1), start=first)
    ]
    return {"variance": variances, "space": torch.stack(space, dim=1)}


def one_stratum(subject: Subject, images: Images, t0: float, t1: float, number: int) -> Rows:
    """The bound's integral on the cheap: each image in one of the strata of ln t that they share."""
    assert images.ordinal is not None
    ordinal = images.ordinal.cpu()
    place = (ordinal // number * GOLDEN_RATIO) % 1.0  # spread evenly over each stratum, the same always
    stratum = ordinal % number
    t = log_uniform((stratum + place.double()) / number, t0, t1).to(images.clean)
    space = denoising_loss(subject.model, images.clean, images.noise(subject, DECODER), t)
    return {"stratum": stratum, "stratum_space": space}


def ends(
    subject: Subject, images: Images, starts: list[float], stops: list[float], mirror: bool | str = False
) -> Rows:
    """The bound's decoder at each candidate t0 and its prior at each candidate t1."""
    noise, model = images.noise(subject, DECODER), subject.denoiser(mirror)
    decoder = decode if subject.quantized else decode_density
    decoders = [decoder(model, images.clean, noise, t0) for t0 in starts]
    priors = [prior_divergence(images.clean, subject.prior, t1) for t1 in stops]
    return {"decoder": torch.stack(decoders, dim=1), "prior": torch.stack(priors, dim=1)}


def certificate(
    subject: Subject, images: Images, span: tuple[float, float], number: int, mirror: bool | str = False
) -> Rows:
    """Draws of the bound with known ranges, for a limit on it that holds whatever their law."""
    clean, model, (t0, t1) = images.clean, subject.denoiser(mirror), span
    uniform = images.uniform(subject, (number,), CERTIFICATE).double()
    space = [
        bounded_space(model, clean, images.noise(subject, CERTIFICATE + 1 + stratum), t)
        for stratum, t in enumerate(stratified_variances(uniform, t0, t1).to(clean).unbind(1))
    ]
    return {
        "decoder": decode_bounded(model, clean, images.noise(subject, CERTIFICATE), t0),
        "space": torch.stack(space, dim=1),
        "prior": prior_divergence(clean, subject.prior, t1),
    }


def dequantized_energies(subject: Subject, images: Images, draws: int) -> Rows:
    """U(x + (u − ½)/255, 0) of several independent u an image."""
    t = images.constant(0.0)
    energies = [subject.energy(images.with_density(subject, draw), t) for draw in range(draws)]
    return {"energy": torch.stack(energies, dim=1)}


def ode_energies(subject: Subject, images: Images, tolerance: float) -> Rows:
    """−log p of the dequantized images by the probability-flow ODE, and its network evaluations."""
    (t_min, t_max), prior = subject.t_range, subject.prior

    def solve(x: Tensor, probe: Tensor) -> Rows:
        try:
            found = ode_energy(subject.model, x, prior, probe, t_min=t_min, t_max=t_max, tolerance=tolerance)
        except FlowError:
            if len(x) == 1:
                return {"energy": x.new_full((1,), math.nan), "evaluations": x.new_zeros(1)}
            alone = [solve(*one) for one in zip(torch.split(x, 1), torch.split(probe, 1), strict=True)]
            return {name: torch.cat([rows[name].double() for rows in alone]) for name in alone[0]}
        return {"energy": found.energy, "evaluations": torch.full_like(found.energy, found.evaluations)}

    return solve(images.with_density(subject), images.probe(subject, ODE))


def true_energies(subject: Subject, images: Images) -> Rows:
    """The known density's own energies: of 8-bit images, of the probability of their cell; no network.

    A cell is one step wide, and averaging a density over it is, up to fourth-order cumulants, adding normal
    noise of the step's variance: −log P(x) = U(x, step²/12) − d log(step).
    """
    assert subject.density is not None
    t = images.constant(QUANTIZATION_VARIANCE if subject.quantized else 0.0)
    return {
        "energy": subject.density(images.clean, t),
        "component": subject.density.component(images.clean, t),
    }


def rise_edges(measured: Measured) -> list[float]:
    """Noise variances between which `rises` measures the denoiser once a draw; every anchor is one."""
    return aligned_strata(measured.anchors, WIDEST_STRATUM)


def rises(subject: Subject, images: Images, edges: list[float]) -> Rows:
    """Both sides of I-MMSE for each image, from no noise up to the last edge, with two draws of noise.

    U(x, 0) of the image as the model was trained on it; for the draws 1 and 2 U(y, t) at the last edge and
    the denoiser's error at one noise variance in each stratum of ln t between the edges.
    """
    clean = images.as_trained(subject)
    rows: Rows = {"clean": subject.energy(clean, images.constant(0.0))}
    for draw, offset in ((1, 0), (2, AGAIN)):
        found = _rise(subject, images, clean, edges, offset)
        rows |= {f"{name}_{draw}": values for name, values in found.items()}
    return rows


def _rise(subject: Subject, images: Images, clean: Tensor, edges: list[float], offset: int) -> Rows:
    uniform = images.uniform(subject, (len(edges) - 1,), STRATA + offset).double()
    logs = torch.tensor(edges, dtype=torch.float64, device=uniform.device).log()
    variances = (logs[:-1] + uniform * logs.diff()).exp()
    space, square, linear = [], [], []
    for stratum, t in enumerate(variances.to(clean).unbind(1)):
        noise = images.noise(subject, STRATA + stratum + offset)
        space.append(denoising_loss(subject.model, clean, noise, t))
        square.append(noise.double().square().mean(dim=(1, 2, 3)) - 1.0)
        linear.append(linear_deviation(subject.prior, clean, noise, t, edges[stratum], edges[stratum + 1]))
    noise, t = images.noise(subject, LEVELS + offset), images.constant(edges[-1])
    return {
        "variance": variances,
        "space": torch.stack(space, dim=1),
        # What their noise and their places alone do, of mean zero for every image.
        "square": torch.stack(square, dim=1),
        "linear": torch.stack(linear, dim=1),
        "top": subject.energy(corrupt(clean, noise, t), t),
        "top_linear": energy_deviation(subject.prior, clean, noise, t),
    }


def heat(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """The heat equation's residual of one noisy version an image and level, by two independent probes."""
    clean, noise = images.as_trained(subject), images.noise(subject, LEVELS)
    rows: Rows = {}
    for draw, offset in ((1, 0), (2, AGAIN)):
        probe, found = images.probe(subject, HEAT + offset), []
        for t in map(images.constant, variances):
            gradients, curvature = laplacian(subject.model, corrupt(clean, noise, t), t, probe, time=True)
            found.append(heat_residual(gradients, curvature, t))
        rows[f"heat_{draw}"] = torch.stack(found, dim=1)
    return rows


def calibration(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """The rank of the true noise level in the energy's posterior over ln t, around each level."""
    clean, ranks = images.as_trained(subject), []
    for level, variance in enumerate(variances):
        grid = window(variance, clean[0].numel(), subject.t_range)
        uniform = images.uniform(subject, (2,), CALIBRATION + level).double().cpu()
        place = (uniform[:, 0] * len(grid)).long()
        t = torch.tensor(grid, dtype=torch.float64)[place].to(clean)
        noisy = corrupt(clean, images.noise(subject, CALIBRATION + level), t)
        energies = [subject.energy(noisy, images.constant(s)).double().cpu() for s in grid]
        ranks.append(rank(torch.stack(energies, dim=1), place, uniform[:, 1]))
    return {"rank": torch.stack(ranks, dim=1)}


def chain_weights(subject: Subject, chains: Images, levels: list[float]) -> Rows:
    """Log weights (n, L) of annealed chains at falling noise variances: what the mass is made of."""
    found = weigh_chains(subject.energy, subject.prior, levels, chains.position, seed=subject.seed)
    return {"log_weight": found.log_weights}


def gaussian_weights(subject: Subject, numbers: Images) -> Rows:
    """Log weights (n, 3) of draws from the Gaussian at large noise variances, for log Z without images."""
    variances = normalizer_variances(subject.t_range[1])
    found = importance_weights(subject.energy, subject.prior, variances, numbers.position, seed=subject.seed)
    return {"log_weight": found}


def identity_stages(split: str, count: int, few: int, chains: int, measured: Measured) -> list[Stage]:
    """Stages of all checks, those that few images tell well on few; chains where a mass is to be measured."""
    stages = [Stage("rises", split, count, rises, {"edges": rise_edges(measured)})]
    if levels := measured.known:
        stages.append(Stage("heat", split, few, heat, {"variances": levels}, batch_divisor=2))
        stages.append(Stage("calibration", split, few, calibration, {"variances": levels}))
    if chains > 1 and not normalized_by_form(measured.subject.model):
        stages.append(Stage("mass", None, chains, chain_weights, {"levels": measured.falling}))
    return [*stages, Stage("anchor", None, GAUSSIAN_DRAWS, gaussian_weights)]


def validation_stages(
    subject: Subject, levels: list[float], span: tuple[float, float], strata_shared: int
) -> list[Stage]:
    """What a validation measures of each image on the cheap, in order; `span` is the bound's t0 and t1."""
    t0, t1 = span
    stages = [Stage("one_level", "val", 0, one_level, {"variances": levels})]
    if subject.is_energy:
        stages.append(Stage("paper", "val", 0, clean_energies))
        stages.append(Stage("normalizer", "val", 0, noisy_energies, {"variances": [subject.t_range[1]]}))
    shared = {"t0": t0, "t1": t1, "number": strata_shared}
    stages.append(Stage("one_stratum", "val", 0, one_stratum, shared))
    stages.append(Stage("ends", "val", 0, ends, {"starts": [t0], "stops": [t1]}))
    return stages
