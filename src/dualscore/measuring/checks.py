"""From rows to checks: what must hold for an energy to be one density's −log at every noise level."""

import math

import torch
from torch import Tensor

from dualscore.likelihood import Estimate, bits, mean
from dualscore.likelihood.calibration import MEAN_TOLERANCE, SPREAD_TOLERANCE
from dualscore.likelihood.consistency import (
    energy_rises,
    rise_from_nothing,
    space_moments,
    steadied,
    time_moments,
)
from dualscore.likelihood.verdict import Check
from dualscore.measuring.figures import Figure, plain
from dualscore.measuring.identities import width_around
from dualscore.measuring.measured import Measured
from dualscore.measuring.rows import joined
from dualscore.noise import in_decibels

RISE, IMAGE, HEAT, SPACE, TIME, ODE, CALIBRATION = (
    "energy rise", "image by image", "heat equation, image by image", "moments of the score",
    "moments of the time derivative", "ODE − energy", "noise level's rank",
)  # fmt: skip
QUINTILES = 5
FEW_PHOTOGRAPHS = 24
"""Photographs of which each one's gap is told, at most."""


def all_checks(measured: Measured) -> list[Check]:
    """Every check whose rows were measured, in the order of their table."""
    makers = {
        "rises": [_image_by_image, _rises],
        "noise_levels": [_moments],
        "heat": [_heat],
        "calibration": [_calibration],
        "ode": [_ode],
    }
    found = []
    for stage, functions in makers.items():
        if stage in measured.rows and measured.subject.is_energy:
            found += [check for function in functions for check in function(measured)]
    return found


def _of(
    measured: Measured, name: str, where: str, values: Tensor, position: Tensor, **more: float | str | bool
) -> Check:
    """A check that the mean of some values (n,) is zero."""
    return Check(name, where, measured.mean(values, position), mean(values).stderr, **more)  # type: ignore[arg-type]


def image_gaps(measured: Measured) -> tuple[Tensor, Tensor, Tensor]:
    """What I-MMSE says of an image less its U(x, 0), by two independent draws of noise, in bits/dim.

    Args:
        measured: with the rows of `identities.rises`.

    Returns:
        The two gaps and the images' positions, each of shape (n,). What is above `top` is left out.
    """
    rows, m = measured.rows["rises"], measured
    top = top_level(m)
    found = []
    for mine, other in ((1, 2), (2, 1)):
        # The other draws' mean loss, so that the control variate's coefficient knows nothing of these.
        slope = rows[f"space_{other}"].mean(dim=0)
        space = steadied(rows[f"space_{mine}"], rows[f"square_{mine}"], slope)
        share = 1.0 - float(slope[-1].clamp(0.0, 1.0))
        energy = rows[f"top_{mine}"] - 0.5 * share * m.dimension * (rows[f"top_square_{mine}"] - 1.0)
        gap = rise_from_nothing(
            rows["clean"], energy, top, rows[f"variance_{mine}"], space, m.grid.width, m.dimension,
            m.grid.t_min, m.subject.dequantize,
        )  # fmt: skip
        found.append(bits(gap, m.dimension))
    return found[0], found[1], rows["position"]


def top_level(measured: Measured) -> float:
    """The largest reported noise variance within those of training; else the largest of training."""
    inside = [t for t in measured.levels if measured.subject.inside(t)]
    return inside[-1] if inside else measured.subject.t_range[1]


def _image_by_image(measured: Measured) -> list[Check]:
    one, two, position = image_gaps(measured)
    where = f"no noise to {in_decibels(top_level(measured))} dB"
    return [
        _of(measured, IMAGE, where, one * two, position, square=True),
        _of(measured, RISE, where, 0.5 * (one + two), position),
    ]


def image_figures(measured: Measured) -> Figure:
    """Where the energy is wrong image by image: by quintile of its own bits, and by photograph.

    Args:
        measured: with the rows of `identities.rises`.

    Returns:
        Plain values: gaps in bits/dim, what its own denoiser says less the energy.
    """
    one, two, position = image_gaps(measured)
    gap = 0.5 * (one + two)
    order = measured.rows["rises"]["clean"].argsort()
    square = measured.mean(one * two, position)
    groups = measured.photographs(position)
    found: Figure = {
        "images": len(gap),
        "mean": plain(measured.mean(gap, position)),
        "mean_square": plain(square),
        "quintiles": [
            plain(measured.mean(gap[part], position[part]))
            for part in order.chunk(QUINTILES)
            if len(part) > 1
        ],
    }
    if groups is not None and 1 < len(names := torch.unique(groups)) <= FEW_PHOTOGRAPHS < len(gap):
        found["photographs"] = {
            str(int(name)): {"gap": float(gap[groups == name].mean()), "images": int((groups == name).sum())}
            for name in names
        }
    return found


def _rises(measured: Measured) -> list[Check]:
    m, rises = measured, measured.rows["rises"]
    levels = m.rows["noise_levels"]
    known = [j for j, t in enumerate(m.levels) if m.subject.inside(t)]
    if not known:
        return []
    a, b = joined(levels, rises)
    energy = levels["energy"][a][:, known]
    there = [m.levels[j] for j in known]
    space, position = (rises["variance_1"][b], rises["space_1"][b]), levels["position"][a]
    gaps = energy_rises(energy, there, *space, m.grid.width, m.dimension)
    found = [
        _of(m, RISE, f"{in_decibels(low)} to {in_decibels(high)} dB", bits(gap, m.dimension), position)
        for low, high, gap in zip(there, there[1:], gaps.unbind(1), strict=False)
    ]
    first = rise_from_nothing(
        rises["clean"][b], energy[:, 0], there[0], *space, m.grid.width, m.dimension, m.grid.t_min,
        m.subject.dequantize,
    )  # fmt: skip
    where = f"no noise to {in_decibels(there[0])} dB"
    return [_of(m, RISE, where, bits(first, m.dimension), position), *found]


def _moments(measured: Measured) -> list[Check]:
    m, rows, found = measured, measured.rows["noise_levels"], []
    if "slope" not in rows:
        return []
    for j, t in enumerate(m.levels):
        if not m.subject.inside(t):
            continue
        where, width = f"{in_decibels(t)} dB", width_around(m.levels, j) / math.log(2.0)
        square, position = rows["noise_square"][:, j], rows["position"]
        score = 0.5 * width * space_moments(rows["space"][:, j], square, rows["gradient_square"][:, j])
        time = width**2 * time_moments(rows["slope"][:, j], square)
        found += [
            _of(m, SPACE, where, score, position),
            _of(m, TIME, where, time, position, square=True),
        ]
    return found


def _heat(measured: Measured) -> list[Check]:
    m, rows, found = measured, measured.rows["heat"], []
    levels = [t for t in m.levels if m.subject.inside(t)]
    for j, t in enumerate(levels):
        cost = 0.5 * width_around(levels, j) / math.log(2.0)
        product = cost**2 * rows["heat_1"][:, j] * rows["heat_2"][:, j]
        found.append(_of(m, HEAT, f"{in_decibels(t)} dB", product, rows["position"], square=True))
    return found


def _calibration(measured: Measured) -> list[Check]:
    m, rows, found = measured, measured.rows["calibration"], []
    levels = [t for t in m.levels if m.subject.inside(t)]
    for t, ranks in zip(levels, rows["rank"].unbind(1), strict=True):
        where, position = f"{in_decibels(t)} dB", rows["position"]
        off, spread = ranks - 0.5, (ranks - 0.5).square() - 1.0 / 12.0
        more = {"unit": "rank"}
        found += [
            _of(m, f"{CALIBRATION}, mean", where, off, position, tolerance=MEAN_TOLERANCE, **more),
            _of(m, f"{CALIBRATION}, spread", where, spread, position, tolerance=SPREAD_TOLERANCE, **more),
        ]
    return found


def _ode(measured: Measured) -> list[Check]:
    """The ODE's energy against the network's of the very same images: of one u where they are dequantized."""
    m, rows = measured, measured.rows["ode"]
    name = "dequantized" if m.subject.quantized else "paper"
    if name not in m.rows or "normalizer" not in m.rows:
        return []
    a, b = joined(rows, m.rows[name])
    energy = m.rows[name]["energy"][b]
    energy = energy[:, 0] if energy.ndim == 2 else energy
    difference, position = bits(rows["energy"][a] - energy, m.dimension), rows["position"][a]
    shared = Estimate(-m.shared.value, m.shared.stderr, m.shared.groups)
    gap = m.mean(difference, position) + shared
    return [Check(ODE, "", gap, math.hypot(mean(difference).stderr, shared.stderr))]


def looked_at(measured: Measured, chains: int) -> str:
    """What the checks are of, for the verdict: `512 images of 2 photographs and 64 chains`."""
    rows = measured.rows.get("rises") or measured.rows.get("noise_levels") or {}
    position = rows.get("position", torch.zeros(0, dtype=torch.int64))
    groups = measured.photographs(position)
    of = "" if groups is None else f" of {len(torch.unique(groups)):,} photographs"
    return f"{len(position):,} images{of}" + (f" and {chains:,} chains" if chains else "")
