"""The checks of an energy on images that are at hand, without files, devices or an experiment."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.measuring.chain_figures import DRAWS, chain_rows, draw_rows, schedule
from dualscore.measuring.identities import identity_stages
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.quantities import (
    clean_energies,
    dequantized_energies,
    noise_levels,
    noisy_energies,
    ode_energies,
)
from dualscore.measuring.subject import Images, Rows, Stage, Subject
from dualscore.noise import variance_at_psnr

PSNR = (60.0, 45.0, 30.0, 15.0, 0.0, -15.0)
"""Noise levels that checks look at, in dB, as far as the model was trained there."""


def measure(
    model: EnergyModel,
    images: Tensor,
    prior: StationaryGaussian,
    *,
    t_range: tuple[float, float],
    photographs: Tensor | None = None,
    quantized: bool = False,
    dequantize: bool = False,
    psnr: Sequence[float] = PSNR,
    ode_images: int = 16,
    chains: int = 64,
    seed: int = 0,
    batch_size: int = 128,
) -> Measured:
    """Draw the rows of every check of an energy.

    Args:
        model: U = −log p(y | t) in nats, up to one constant.
        images: x in [0, 1], shape (n, C, H, W), n ≥ 2; of the density that the energy claims to be.
        prior: the images' Gaussian.
        t_range: smallest and largest noise variance that the energy knows, in pixel².
        photographs: which photograph each image is of, integers, shape (n,); None if not known.
        quantized: whether images are 8-bit, so that their density is that of dequantized ones.
        dequantize: whether the energy is of dequantized images.
        psnr: noise levels in dB.
        ode_images: how many are followed along the flow; 0 for none.
        chains: annealed chains for the mass; 0 for none.
        seed: of all noise.
        batch_size: images at once.

    Returns:
        The rows; `dualscore.measuring.checks.all_checks` reads them.
    """
    subject = Subject(
        model, prior, None, quantized=quantized, dequantize=dequantize, t_range=t_range, seed=seed
    )
    levels = sorted(variance_at_psnr(decibels) for decibels in psnr)
    count = len(images)
    groups = None if photographs is None else photographs.cpu()
    measured = Measured(
        subject,
        math.prod(images.shape[1:]),
        Grid(*t_range, 1),
        levels,
        photographs=lambda position: None if groups is None else groups[position],
    )
    density = dequantized_energies("", count, 1) if quantized else clean_energies("", count, "paper")
    stages: list[Stage] = [
        noisy_energies([t_range[1]], "", count, "normalizer"),
        density,
        noise_levels(levels, "", count),
        *identity_stages("", count, count, measured),
        *([ode_energies("", ode_images, 1e-3)] if ode_images > 1 else []),
    ]
    for stage in stages:
        chosen = images[:ode_images] if stage.name == "ode" else images
        measured.rows[stage.name] = _rows(stage, subject, chosen, batch_size)
    if chains > 1:
        parts = [
            chain_rows(subject, schedule(measured), range(start, min(start + batch_size, chains)))
            for start in range(0, chains, batch_size)
        ]
        measured.rows["mass"] = {"log_weight": torch.cat([part["log_weight"] for part in parts])}
    measured.rows["anchor"] = draw_rows(subject, range(DRAWS))
    return measured


def _rows(stage: Stage, subject: Subject, images: Tensor, batch_size: int) -> Rows:
    """A stage's rows of all images, in double precision on the CPU."""
    parts: list[Rows] = []
    for start in range(0, len(images), batch_size):
        clean = images[start : start + batch_size]
        position = torch.arange(start, start + len(clean))
        found = stage.measure(subject, Images(clean, position.tolist()))
        parts.append({"position": position, **{name: v.detach().cpu().double() for name, v in found.items()}})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
