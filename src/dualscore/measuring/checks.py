"""From rows to checks: what must hold for an energy to be one density's −log at every noise level."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from dualscore.likelihood import Estimate, bits, mean
from dualscore.likelihood.consistency import (
    MEAN_TOLERANCE,
    SPREAD_TOLERANCE,
    aligned_strata,
    energy_rises,
    rise_from_nothing,
    space_moments,
    steadied,
    time_moments,
)
from dualscore.likelihood.verdict import TOLERANCE, Check, Word
from dualscore.measuring.chain_figures import mass_checks
from dualscore.measuring.identities import WIDEST_STRATUM, width_around
from dualscore.measuring.measured import Measured
from dualscore.measuring.row_figures import Figure, plain
from dualscore.measuring.subject import joined
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
        "rises": [_image_by_image, _rises, _moments],
        "heat": [_heat],
        "calibration": [_calibration],
        "ode": [_ode],
    }
    found = mass_checks(measured) if measured.subject.is_energy else []
    for stage, functions in makers.items():
        if stage in measured.rows and measured.subject.is_energy:
            found += [check for function in functions for check in function(measured)]
    return found


def _of(
    measured: Measured,
    name: str,
    where: str,
    values: Tensor,
    position: Tensor,
    *,
    square: bool = False,
    decisive: bool = True,
    of_images: bool = False,
    tolerance: float = TOLERANCE,
    unit: str = "bits/dim",
) -> Check:
    """A check that the mean of some values (n,) is zero."""
    said = None
    if bool(values.isfinite().all()):
        gap, here = measured.mean(values, position), mean(values).stderr
    else:  # an energy whose derivatives overflow, which says nothing of its values
        gap, here, said = Estimate(math.nan, math.nan), math.nan, Word.undecided
    return Check(
        name,
        where,
        gap,
        here,
        tolerance,
        unit,
        square=square,
        decisive=decisive,
        of_images=of_images,
        said=said,
    )


def image_gaps(measured: Measured) -> tuple[Tensor, Tensor, Tensor]:
    """I-MMSE's energy of images less U(x, 0), by two draws of noise, in bits/dim, and positions: all (n,)."""
    rows, m = measured.rows["rises"], measured
    found = []
    for draw in (1, 2):
        space = steadied(rows[f"space_{draw}"], rows[f"square_{draw}"], rows[f"linear_{draw}"])
        energy = steadied(rows[f"top_{draw}"][:, None], rows[f"top_linear_{draw}"][:, None])[:, 0]
        gap = rise_from_nothing(
            rows["clean"], energy, m.anchors[-1], rows[f"variance_{draw}"], space, _widths(m), m.dimension,
            m.anchors[0], m.subject.dequantize,
        )  # fmt: skip
        found.append(bits(gap, m.dimension))
    return found[0], found[1], rows["position"]


def _widths(measured: Measured) -> Tensor:
    """Of the strata of `identities.rises`, in nats of ln t, shape (S,)."""
    edges = aligned_strata(measured.anchors, WIDEST_STRATUM)
    return torch.tensor(edges, dtype=torch.float64).log().diff()


def _image_by_image(measured: Measured) -> list[Check]:
    one, two, position = image_gaps(measured)
    where = f"no noise to {in_decibels(measured.anchors[-1])} dB"
    return [
        _of(measured, IMAGE, where, one * two, position, square=True),
        _of(measured, RISE, where, 0.5 * (one + two), position),
    ]


def image_figures(measured: Measured) -> Figure:
    """Where the energy is wrong image by image: by quintile of its own bits, and by photograph."""
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
    known = [j for j, t in enumerate(m.levels) if t in m.anchors]
    if not known:
        return []
    a, b = joined(levels, rises)
    energy = steadied(levels["energy"][a][:, known], levels["linear"][a][:, known])
    there, position = [m.levels[j] for j in known], levels["position"][a]
    draws = []
    for draw in (1, 2):
        space = steadied(rises[f"space_{draw}"], rises[f"square_{draw}"], rises[f"linear_{draw}"])[b]
        measured_at = (rises[f"variance_{draw}"][b], space, _widths(m), m.dimension)
        first = rise_from_nothing(
            rises["clean"][b], energy[:, 0], there[0], *measured_at, m.anchors[0], m.subject.dequantize
        )
        draws.append(torch.cat([first[:, None], energy_rises(energy, there, *measured_at)], dim=1))
    gaps = bits(0.5 * (draws[0] + draws[1]), m.dimension)
    names = ["no noise", *map(in_decibels, there)]
    return [
        _of(m, RISE, f"{low} to {high} dB", gap, position, decisive=False)
        for (low, high), gap in zip(pairwise(names), gaps.unbind(1), strict=True)
    ]


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
            _of(m, SPACE, where, score, position, of_images=True),
            _of(m, TIME, where, time, position, square=True, of_images=True),
        ]
    return found


def _heat(measured: Measured) -> list[Check]:
    m, rows, found = measured, measured.rows["heat"], []
    levels = m.known
    for j, t in enumerate(levels):
        cost = 0.5 * width_around(levels, j) / math.log(2.0)
        product = cost**2 * rows["heat_1"][:, j] * rows["heat_2"][:, j]
        where = f"{in_decibels(t)} dB"
        found.append(_of(m, HEAT, where, product, rows["position"], square=True, decisive=False))
    return found


def _calibration(measured: Measured) -> list[Check]:
    m, rows, found = measured, measured.rows["calibration"], []
    levels = m.known
    for t, ranks in zip(levels, rows["rank"].unbind(1), strict=True):
        where, position = f"{in_decibels(t)} dB", rows["position"]
        off, spread = ranks - 0.5, (ranks - 0.5).square() - 1.0 / 12.0
        for statistic, values, tolerance in (
            ("mean", off, MEAN_TOLERANCE),
            ("spread", spread, SPREAD_TOLERANCE),
        ):
            name = f"{CALIBRATION}, {statistic}"
            found.append(
                _of(m, name, where, values, position, of_images=True, tolerance=tolerance, unit="rank")
            )
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
    here = math.hypot(mean(difference).stderr, shared.stderr)
    return [Check(ODE, "", gap, here, decisive=False)]


def looked_at(measured: Measured) -> str:
    """What the checks are of, for the verdict: `512 images of 2 photographs and 64 chains`."""
    rows = measured.rows.get("rises") or measured.rows.get("noise_levels") or {}
    position = rows.get("position", torch.zeros(0, dtype=torch.int64))
    groups = measured.photographs(position)
    of = "" if groups is None else f" of {len(torch.unique(groups)):,} photographs"
    chains = len(measured.rows["mass"]["log_weight"]) if "mass" in measured.rows else 0
    return f"{len(position):,} images{of}" + (f" and {chains:,} chains" if chains else "")
