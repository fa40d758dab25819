"""The quantities that checks are made of: what every −log p satisfies, measured image by image."""

import math

import torch
from torch import Tensor

from dualscore.likelihood.consistency import (
    aligned_strata,
    energy_deviation,
    heat_residual,
    linear_deviation,
    rank,
    window,
)
from dualscore.likelihood.ode import laplacian
from dualscore.measuring.measured import Measured
from dualscore.measuring.subject import AGAIN, CALIBRATION, HEAT, LEVELS, STRATA, Images, Rows, Stage, Subject
from dualscore.noise import corrupt
from dualscore.objective import denoising_loss

WIDEST_STRATUM = 1.6  # nats of ln t, at most, of a stratum in which the denoiser is measured once a draw


def rises(split: str, count: int, levels: list[float]) -> Stage:
    """Both sides of I-MMSE for each image, from no noise up to the last level, with two draws of noise.

    U(x, 0) of the image as the model was trained on it; for the draws 1 and 2 U(y, t) at the last level and
    the denoiser's error at one noise variance in each stratum of ln t between the levels.
    """
    edges = aligned_strata(levels, WIDEST_STRATUM)

    def measure(subject: Subject, images: Images) -> Rows:
        clean = images.as_trained(subject)
        with torch.no_grad():
            rows: Rows = {"clean": subject.energy(clean, images.constant(0.0))}
            for draw, offset in ((1, 0), (2, AGAIN)):
                found = _rise(subject, images, clean, edges, offset)
                rows |= {f"{name}_{draw}": values for name, values in found.items()}
        return rows

    return Stage("rises", split, count, measure, {"edges": edges})


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


def heat(split: str, count: int, variances: list[float]) -> Stage:
    """The heat equation's residual of one noisy version an image and level, by two independent probes."""

    def measure(subject: Subject, images: Images) -> Rows:
        clean, noise = images.as_trained(subject), images.noise(subject, LEVELS)
        rows: Rows = {}
        for draw, offset in ((1, 0), (2, AGAIN)):
            probe, found = images.probe(subject, HEAT + offset), []
            for t in map(images.constant, variances):
                gradients, curvature = laplacian(subject.model, corrupt(clean, noise, t), t, probe, time=True)
                found.append(heat_residual(gradients, curvature, t))
            rows[f"heat_{draw}"] = torch.stack(found, dim=1)
        return rows

    return Stage("heat", split, count, measure, {"variances": variances}, batch_divisor=2)


def calibration(split: str, count: int, variances: list[float]) -> Stage:
    """The rank of the true noise level in the energy's posterior over ln t, around each level."""

    def measure(subject: Subject, images: Images) -> Rows:
        clean, ranks = images.as_trained(subject), []
        for level, variance in enumerate(variances):
            grid = window(variance, clean[0].numel(), subject.t_range)
            uniform = images.uniform(subject, (2,), CALIBRATION + level).double().cpu()
            place = (uniform[:, 0] * len(grid)).long()
            noise = images.noise(subject, CALIBRATION + level)
            t = torch.tensor(grid, dtype=torch.float64)[place].to(clean)
            noisy = corrupt(clean, noise, t)
            with torch.no_grad():
                energies = [subject.energy(noisy, images.constant(s)).double().cpu() for s in grid]
            ranks.append(rank(torch.stack(energies, dim=1), place, uniform[:, 1]))
        return {"rank": torch.stack(ranks, dim=1)}

    return Stage("calibration", split, count, measure, {"variances": variances})


def identity_stages(split: str, count: int, few: int, measured: Measured) -> list[Stage]:
    """Stages of all identities, those that are known well from few images on few."""
    known, stages = measured.known, [rises(split, count, measured.anchors)]
    return stages + ([heat(split, few, known), calibration(split, few, known)] if known else [])


def width_around(variances: list[float], place: int) -> float:
    """Nats of ln t nearer to a level than to its neighbours; 1 where there is one level."""
    logs = [math.log(t) for t in variances]
    low, high = logs[max(0, place - 1)], logs[min(len(logs) - 1, place + 1)]
    return 0.5 * (high - low) if len(logs) > 1 else 1.0
