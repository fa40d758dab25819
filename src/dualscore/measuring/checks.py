"""From rows to checks: what must hold for an energy to be one density's −log at every noise level."""

import math
from dataclasses import replace
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
from dualscore.likelihood.verdict import Check, Word
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
FEW_PHOTOGRAPHS = 24  # photographs of which each one's gap is told, at most


def all_checks(measured: Measured) -> list[Check]:
    """Every check whose rows were measured, in the order of their table."""
    if not measured.subject.is_energy:
        return []
    makers = {
        "rises": (_image_by_image, _rises, _moments),
        "heat": (_heat,),
        "calibration": (_calibration,),
        "ode": (_ode,),
    }
    made = [make(measured) for stage in makers if stage in measured.rows for make in makers[stage]]
    return [*mass_checks(measured), *(check for checks in made for check in checks)]


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
) -> Check:
    """A check that the mean of some values (n,) is zero."""
    if finite := bool(values.isfinite().all()):
        gap, here = measured.mean(values, position), mean(values).stderr
    else:  # an energy whose derivatives overflow, which says nothing of its values
        gap, here = Estimate(math.nan, math.nan), math.nan
    said = None if finite else Word.undecided
    return Check(name, where, gap, here, square=square, decisive=decisive, of_images=of_images, said=said)


def _denoised(measured: Measured, draw: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """One draw's noise variances (n, S), space losses (n, S), the strata's widths (S,) and d."""
    rows = measured.rows["rises"]
    edges = aligned_strata(measured.anchors, WIDEST_STRATUM)
    space = steadied(rows[f"space_{draw}"], rows[f"square_{draw}"], rows[f"linear_{draw}"])
    width = torch.tensor(edges, dtype=torch.float64).log().diff()
    return rows[f"variance_{draw}"], space, width, measured.dimension


def image_gaps(measured: Measured) -> tuple[Tensor, Tensor, Tensor]:
    """I-MMSE's energy of images less U(x, 0), by two draws of noise, in bits/dim; positions: all (n,)."""
    rows, m, found = measured.rows["rises"], measured, []
    for draw in (1, 2):
        energy = steadied(rows[f"top_{draw}"][:, None], rows[f"top_linear_{draw}"][:, None])[:, 0]
        gap = rise_from_nothing(
            rows["clean"], energy, m.anchors[-1], *_denoised(m, draw), m.anchors[0], m.subject.dequantize
        )
        found.append(bits(gap, m.dimension))
    return found[0], found[1], rows["position"]


def _image_by_image(measured: Measured) -> list[Check]:
    one, two, position = image_gaps(measured)
    where = f"no noise to {in_decibels(measured.anchors[-1])} dB"
    return [
        _of(measured, IMAGE, where, one * two, position, square=True),
        _of(measured, RISE, where, 0.5 * (one + two), position),
    ]


def image_figures(measured: Measured) -> Figure:
    """The energy's error image by image: by quintile of its own bits, and by photograph."""
    one, two, position = image_gaps(measured)
    gap = 0.5 * (one + two)
    by_bits = measured.rows["rises"]["clean"].argsort().chunk(QUINTILES)
    groups = measured.photographs(position)
    found: Figure = {
        "images": len(gap),
        "mean": plain(measured.mean(gap, position)),
        "mean_square": plain(measured.mean(one * two, position)),
        "quintiles": [plain(measured.mean(gap[part], position[part])) for part in by_bits if len(part) > 1],
    }
    if groups is not None and 1 < len(names := torch.unique(groups)) <= FEW_PHOTOGRAPHS < len(gap):
        found["photographs"] = {
            str(int(name)): {"gap": float(gap[groups == name].mean()), "images": int((groups == name).sum())}
            for name in names
        }
    return found


def _rises(measured: Measured) -> list[Check]:
    """The energy's rise between the anchors that are noise levels, of images measured at both."""
    m, rises, levels = measured, measured.rows["rises"], measured.rows["noise_levels"]
    known = [j for j, t in enumerate(m.levels) if t in m.anchors]
    if not known:
        return []
    a, b = joined(levels, rises)
    energy = steadied(levels["energy"][a][:, known], levels["linear"][a][:, known])
    there, draws = [m.levels[j] for j in known], []
    for draw in (1, 2):
        variance, space, width, d = _denoised(m, draw)
        found = variance[b], space[b], width, d
        first = rise_from_nothing(
            rises["clean"][b], energy[:, 0], there[0], *found, m.anchors[0], m.subject.dequantize
        )
        draws.append(torch.cat([first[:, None], energy_rises(energy, there, *found)], dim=1))
    gaps = bits(0.5 * (draws[0] + draws[1]), m.dimension).unbind(1)
    between = pairwise(["no noise", *map(in_decibels, there)])
    return [
        _of(m, RISE, f"{low} to {high} dB", gap, levels["position"][a], decisive=False)
        for (low, high), gap in zip(between, gaps, strict=True)
    ]


def _moments(measured: Measured) -> list[Check]:
    """Second moments of both gradients at each level of training."""
    m, rows, found = measured, measured.rows["noise_levels"], []
    for j, t in enumerate(m.levels if "slope" in rows else []):
        if m.subject.inside(t):
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
    """The heat equation's mean square residual, of two probes, at each level of training."""
    m, rows, found = measured, measured.rows["heat"], []
    for j, t in enumerate(m.known):
        cost = 0.5 * width_around(m.known, j) / math.log(2.0)
        product = cost**2 * rows["heat_1"][:, j] * rows["heat_2"][:, j]
        where = f"{in_decibels(t)} dB"
        found.append(_of(m, HEAT, where, product, rows["position"], square=True, decisive=False))
    return found


def _calibration(measured: Measured) -> list[Check]:
    """Whether the noise level's rank is uniform: its mean ½, its mean square around it 1/12."""
    m, rows, found = measured, measured.rows["calibration"], []
    for t, ranks in zip(m.known, rows["rank"].unbind(1), strict=True):
        off, where = ranks - 0.5, f"{in_decibels(t)} dB"
        for statistic, values, tolerance in (
            ("mean", off, MEAN_TOLERANCE),
            ("spread", off.square() - 1.0 / 12.0, SPREAD_TOLERANCE),
        ):
            check = _of(m, f"{CALIBRATION}, {statistic}", where, values, rows["position"], of_images=True)
            found.append(replace(check, tolerance=tolerance, unit="rank"))
    return found


def _ode(measured: Measured) -> list[Check]:
    """The ODE's energy against the network's of the very same images: of one u where they are dequantized."""
    m, rows = measured, measured.rows["ode"]
    name = "dequantized" if m.subject.quantized else "paper"
    if name not in m.rows or "normalizer" not in m.rows:
        return []
    a, b = joined(rows, m.rows[name])
    energy = m.rows[name]["energy"].reshape(len(m.rows[name]["position"]), -1)[b, 0]
    difference = bits(rows["energy"][a] - energy, m.dimension)
    shared = Estimate(-m.shared.value, m.shared.stderr, m.shared.groups)
    here = math.hypot(mean(difference).stderr, shared.stderr)
    return [Check(ODE, "", m.mean(difference, rows["position"][a]) + shared, here, decisive=False)]


def looked_at(measured: Measured) -> str:
    """The checked images and chains, for the verdict: `512 images of 2 photographs and 64 chains`."""
    rows = measured.rows.get("rises") or measured.rows.get("noise_levels") or {}
    position = rows.get("position", torch.zeros(0, dtype=torch.int64))
    groups = measured.photographs(position)
    of = "" if groups is None else f" of {len(torch.unique(groups)):,} photographs"
    chains = len(measured.rows["mass"]["log_weight"]) if "mass" in measured.rows else 0
    return f"{len(position):,} images{of}" + (f" and {chains:,} chains" if chains else "")
