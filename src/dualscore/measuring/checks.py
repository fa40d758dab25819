"""From rows to checks: what must hold for an energy to be one density's −log at every noise level."""

import math
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from dualscore.energy import BY_FORM, normalized_by_form
from dualscore.likelihood import Estimate, bits, mean
from dualscore.likelihood.normalizer import LogMean, Normalization, log_mean
from dualscore.measuring.consistency import (
    MEAN_TOLERANCE,
    SPREAD_TOLERANCE,
    energy_rises,
    rise_from_nothing,
    space_moments,
    steadied,
    time_moments,
)
from dualscore.measuring.mass import Mass, mass_of, measured_mass, normalizer_variances
from dualscore.measuring.measured import Measured
from dualscore.measuring.quantities import rise_edges
from dualscore.measuring.row_figures import Figure, plain
from dualscore.measuring.subject import joined
from dualscore.measuring.verdict import MASS_TOLERANCE, Check, Word
from dualscore.noise import in_decibels

MASS, LOG_Z, RISE, IMAGE, HEAT, SPACE, TIME, ODE, CALIBRATION = (
    "mass", "log Z", "energy rise", "image by image", "heat equation, image by image",
    "moments of the score", "moments of the time derivative", "ODE − energy", "noise level's rank",
)  # fmt: skip
QUINTILES = 5
FEW_PHOTOGRAPHS = 24  # photographs of which each one's gap is told, at most
SURE = 0.1  # share of the chains that must be effective for a mass to be called one
EVEN = 0.5  # share of the draws that must be effective for log Z at a noise level to be compared


def all_checks(measured: Measured) -> list[Check]:
    """Every check whose rows were measured, in the order of their table."""
    made = [make(measured) for make, stage in MAKERS if stage in measured.rows and measured.subject.is_energy]
    return [check for checks in made for check in checks]


def _of(
    measured: Measured, name: str, where: str, values: Tensor, position: Tensor, *,
    square: bool = False, decisive: bool = True, of_images: bool = False,
) -> Check:  # fmt: skip
    """A check that the mean of some values (n,) is zero."""
    if finite := bool(values.isfinite().all()):
        gap, here = measured.mean(values, position), mean(values).stderr
    else:  # an energy whose derivatives overflow, which says nothing of its values
        gap, here = Estimate(math.nan, math.nan), math.nan
    said = None if finite else Word.undecided
    return Check(name, where, gap, here, square=square, decisive=decisive, of_images=of_images, said=said)


def _weights(measured: Measured, stage: str) -> Tensor | None:
    """A stage's log weights; None without any, or where one was not finite."""
    found = measured.rows.get(stage, {}).get("log_weight")
    return found if found is not None and bool(found.isfinite().all()) else None


def _found_mass(measured: Measured) -> Mass | None:
    """The energy's own mass, from its chains."""
    weights = _weights(measured, "mass")
    return None if weights is None else mass_of(weights, measured.falling)


def _without_images(measured: Measured) -> list[LogMean]:
    """Log Z at each of `normalizer_variances`, if it was measured."""
    weights = _weights(measured, "anchor")
    return [] if weights is None else [log_mean(column) for column in weights.unbind(1)]


def normalization(measured: Measured) -> Normalization | None:
    """The reported log Z, and the mass that is left with it; None without log Z."""
    if "normalizer" not in measured.rows:
        return None
    if normalized_by_form(measured.subject.model):
        return Normalization(0.0, 0.0, BY_FORM)
    log_z, mass = measured.log_z, _found_mass(measured)
    images, t_max = len(measured.rows["normalizer"]["noise_square"]), measured.subject.t_range[1]
    return Normalization(
        value=log_z.value,
        stderr=plain(log_z)["stderr"],
        how=f"the paper's protocol on {images:,} images at t = {t_max:g}",
        mass=None if mass is None else measured_mass(mass, log_z.value, measured.dimension),
    )


def mass_figures(measured: Measured) -> Figure | None:
    """The report's entry: log Z, the mass, where it appears, and log Z without images."""
    found, mass = normalization(measured), _found_mass(measured)
    if found is None:
        return None
    figure: Figure = {**found.plain(), "text": str(found)}
    if mass is not None:
        profile = [value - found.value for value in mass.profile]
        figure |= {"levels": mass.levels, "profile": profile, "chains": mass.at.count}
    for top in _without_images(measured)[:1]:
        figure["without_images"] = {"value": top.value, "stderr": top.stderr, "share": top.share}
    return figure


def _mass_by_form(measured: Measured) -> list[Check]:
    """One that is one without a measurement, where it is."""
    if not normalized_by_form(measured.subject.model):
        return []
    return [Check(MASS, BY_FORM, Estimate(0.0, 0.0), 0.0, MASS_TOLERANCE, "nats", said=Word.consistent)]


def _mass(measured: Measured) -> list[Check]:
    """Whether the energy integrates to one: a limit above it is proof, and one needs chains that agree."""
    found, where = normalization(measured), f"{in_decibels(measured.falling[-1])} dB"
    gap, word = Estimate(math.nan, math.nan), Word.undecided
    if found is not None and (mass := found.mass) is not None:  # else not finite where its gradient leads
        gap, off, share = Estimate(mass.nats, mass.stderr), abs(mass.nats), mass.effective_share
        if mass.limit > MASS_TOLERANCE or (share > 2 * SURE and off - 3.0 * mass.stderr > MASS_TOLERANCE):
            word = Word.inconsistent
        elif share > SURE and off + 2.0 * mass.stderr < MASS_TOLERANCE:
            word = Word.consistent
    return [Check(MASS, where, gap, gap.stderr, MASS_TOLERANCE, "nats", said=word)]


def _log_z(measured: Measured) -> list[Check]:
    """Whether log Z is one number at every large noise level."""
    names = [in_decibels(t) for t in normalizer_variances(measured.subject.t_range[1])]
    found = list(zip(names, _without_images(measured), strict=False))
    checks = []
    for name, other in found[1:]:
        top = found[0][1]
        if min(top.share, other.share) >= EVEN:
            gap = bits(other.estimate - top.estimate, measured.dimension)
            checks.append(Check(LOG_Z, f"{name} against {names[0]} dB", gap, gap.stderr))
    return checks


def _denoised(measured: Measured, draw: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """One draw's noise variances (n, S), space losses (n, S), the strata's widths (S,) and d."""
    rows = measured.rows["rises"]
    space = steadied(rows[f"space_{draw}"], rows[f"square_{draw}"], rows[f"linear_{draw}"])
    width = torch.tensor(rise_edges(measured), dtype=torch.float64).log().diff()
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
    gap, groups = 0.5 * (one + two), measured.photographs(position)
    by_bits = measured.rows["rises"]["clean"].argsort().chunk(QUINTILES)
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


def _width_around(variances: list[float], place: int) -> float:
    """Nats of ln t nearer to a level than to its neighbours; 1 where there is one level."""
    logs = [math.log(t) for t in variances]
    low, high = logs[max(0, place - 1)], logs[min(len(logs) - 1, place + 1)]
    return 0.5 * (high - low) if len(logs) > 1 else 1.0


def _moments(measured: Measured) -> list[Check]:
    """Second moments of both gradients at each level of training."""
    m, rows, found = measured, measured.rows["noise_levels"], []
    for j, t in enumerate(m.levels if "slope" in rows else []):
        if m.subject.inside(t):
            where, width = f"{in_decibels(t)} dB", _width_around(m.levels, j) / math.log(2.0)
            square, position = rows["noise_square"][:, j], rows["position"]
            score = 0.5 * width * space_moments(rows["space"][:, j], square, rows["gradient_square"][:, j])
            time = width**2 * time_moments(rows["slope"][:, j], square)
            found.append(_of(m, SPACE, where, score, position, of_images=True))
            found.append(_of(m, TIME, where, time, position, square=True, of_images=True))
    return found


def _heat(measured: Measured) -> list[Check]:
    """The heat equation's mean square residual, of two probes, at each level of training."""
    m, rows, found = measured, measured.rows["heat"], []
    for j, t in enumerate(m.known):
        cost = 0.5 * _width_around(m.known, j) / math.log(2.0)
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
    other = m.rows.get("dequantized" if m.subject.quantized else "paper")
    if other is None or "normalizer" not in m.rows:
        return []
    a, b = joined(rows, other)
    energy = other["energy"].reshape(len(other["position"]), -1)[b, 0]
    difference = bits(rows["energy"][a] - energy, m.dimension)
    shared = Estimate(-m.shared.value, m.shared.stderr, m.shared.groups)
    here = math.hypot(mean(difference).stderr, shared.stderr)
    return [Check(ODE, "", m.mean(difference, rows["position"][a]) + shared, here, decisive=False)]


MAKERS = (
    (_mass_by_form, "anchor"),
    (_mass, "mass"),
    (_log_z, "anchor"),
    (_image_by_image, "rises"),
    (_rises, "rises"),
    (_moments, "rises"),
    (_heat, "heat"),
    (_calibration, "calibration"),
    (_ode, "ode"),
)
"""What makes checks, and the stage whose rows it needs, in the order of their table."""


def looked_at(measured: Measured) -> str:
    """The checked images and chains, for the verdict: `512 images of 2 photographs and 64 chains`."""
    rows = measured.rows.get("rises") or measured.rows.get("noise_levels") or {}
    position = rows.get("position", torch.zeros(0, dtype=torch.int64))
    groups = measured.photographs(position)
    of = "" if groups is None else f" of {len(torch.unique(groups)):,} photographs"
    chains = len(measured.rows["mass"]["log_weight"]) if "mass" in measured.rows else 0
    return f"{len(position):,} images{of}" + (f" and {chains:,} chains" if chains else "")
