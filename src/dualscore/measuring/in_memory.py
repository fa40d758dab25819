"""Rows of images that are at hand, without devices or an experiment; and the checks of an energy on them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dualscore.energy import EnergyModel
from dualscore.gaussian import StationaryGaussian
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.quantities import (
    clean_energies,
    dequantized_energies,
    identity_stages,
    noise_levels,
    noisy_energies,
    ode_energies,
)
from dualscore.measuring.subject import Images, Rows, Stage, Subject, plain_rows
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
    levels, n = sorted(variance_at_psnr(decibels) for decibels in psnr), len(images)
    measured = Measured(
        subject,
        math.prod(images.shape[1:]),
        Grid(*t_range, 1),
        levels,
        photographs=by_position(photographs),
    )

    def at(position: Tensor) -> tuple[Subject, Tensor]:
        return subject, images[position.to(images.device)]

    stages = [
        Stage("normalizer", "", n, noisy_energies, {"variances": [t_range[1]]}),
        Stage("dequantized", "", n, dequantized_energies, {"draws": 1})
        if quantized
        else Stage("paper", "", n, clean_energies),
        noise_levels(levels, "", n),
        *identity_stages("", n, n, chains, measured),
        Stage("ode", "", min(ode_images, n), ode_energies, {"tolerance": 1e-3}),
    ]
    for stage in stages:
        if stage.count > 1:
            places = torch.arange(stage.count)
            measured.rows[stage.name] = rows_at(stage, places, batch_size, at)
    return measured


def by_position(photographs: Tensor | None) -> Callable[[Tensor], Tensor | None]:
    """Maps positions (n,) of images to the photographs they are of, (n,), or to None where nobody knows."""
    groups = None if photographs is None else photographs.cpu()
    return lambda position: None if groups is None else groups[position]


class KeptRows(Protocol):
    """Where rows are kept while they are measured, so that an interrupted measurement goes on."""

    def read(self) -> Rows:
        """All rows so far, in the order of positions; none at first."""

    def add(self, rows: Rows) -> None:
        """Take a batch's rows."""

    def flush(self) -> None:
        """Keep what was added."""


def rows_at(
    stage: Stage,
    places: Tensor,
    batch_size: int,
    at: Callable[[Tensor], tuple[Subject, Tensor]],
    kept: KeptRows | None = None,
    batches: Iterator[int] | None = None,
) -> Rows:
    """A stage's rows at places (k,), rising, or of numbers, in double precision on the CPU.

    `at` gives for places (B,) what is measured there, and the clean pixels (B, C, H, W). Rows that are kept
    are not measured again. A number is taken from `batches` before each batch.
    """
    known = {} if kept is None else kept.read()
    parts, done = [known] if known else [], known.get("position", places[:0])
    try:
        for position in torch.split(places, batch_size):
            if batches is not None:
                next(batches, None)
            left = position[~torch.isin(position, done)]
            if not len(left):
                continue
            of_images = stage.split is not None
            subject, clean = at(left if of_images else left[:0])  # numbers of chains are no places
            found = stage.measure(subject, Images(clean, left.tolist()))
            parts.append(plain_rows({"position": left, **found}))
            if kept is not None:
                kept.add(parts[-1])
    finally:
        if kept is not None:
            kept.flush()
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = rows["position"].argsort(stable=True)
    return {name: values[order] for name, values in rows.items()}
