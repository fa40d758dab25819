"""From the rows of chains to what is said of an energy's normalization."""

import math
from collections.abc import Sequence

from torch import Tensor

from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood import Estimate, bits
from dualscore.likelihood.normalizer import LogMean, MeasuredMass, Normalization, log_mean
from dualscore.likelihood.verdict import MASS_TOLERANCE, Check, Word
from dualscore.measuring.measured import Measured
from dualscore.measuring.row_figures import Figure, plain
from dualscore.measuring.subject import Rows, Subject
from dualscore.noise import in_decibels
from dualscore.sampling.annealed import levels
from dualscore.sampling.mass import (
    LEVELS,
    Mass,
    importance_weights,
    mass_of,
    measured_mass,
    normalizer_variances,
    weigh_chains,
)

MASS, LOG_Z = "mass", "log Z"
DRAWS = 512  # from the Gaussian, for log Z at large noise
SURE = 0.1  # share of the chains that must be effective for a mass to be called one
EVEN = 0.5  # share of the draws that must be effective for log Z at a noise level to be compared


def schedule(measured: Measured) -> list[float]:
    """The chains' noise variances, falling to that of training or of rounding to 8 bits, in pixel²."""
    t_min, t_max = measured.subject.t_range
    return levels(t_max, LEVELS, max(t_min, QUANTIZATION_VARIANCE))


def chain_rows(subject: Subject, variances: Sequence[float], chains: Sequence[int]) -> Rows:
    """Log weights (n, L) of some chains at every level: what the mass is made of."""
    found = weigh_chains(subject.energy, subject.prior, variances, chains, seed=subject.seed)
    return {"log_weight": found.log_weights}


def draw_rows(subject: Subject, draws: Sequence[int]) -> Rows:
    """Log weights (n, 3) of some draws from the Gaussian at large noise variances, for log Z."""
    variances = normalizer_variances(subject.t_range[1])
    found = importance_weights(subject.energy, subject.prior, variances, draws, seed=subject.seed)
    return {"log_weight": found}


def _finite_rows(measured: Measured, stage: str) -> Tensor | None:
    """A stage's log weights; None without any, or where one was not finite."""
    found = measured.rows.get(stage, {}).get("log_weight")
    return found if found is not None and bool(found.isfinite().all()) else None


def _found_mass(measured: Measured) -> Mass | None:
    """The energy's own mass, from its chains."""
    weights = _finite_rows(measured, "mass")
    return None if weights is None else mass_of(weights, schedule(measured))


def _without_images(measured: Measured) -> list[LogMean]:
    """Log Z at each of `normalizer_variances`, if it was measured."""
    weights = _finite_rows(measured, "anchor")
    return [] if weights is None else [log_mean(column) for column in weights.unbind(1)]


def normalization(measured: Measured) -> Normalization | None:
    """The reported log Z, and the mass that is left with it; None without log Z."""
    if "normalizer" not in measured.rows:
        return None
    log_z, mass = measured.log_z, _found_mass(measured)
    images = len(measured.rows["normalizer"]["noise_square"])
    return Normalization(
        value=log_z.value,
        stderr=plain(log_z)["stderr"],
        how=f"the paper's protocol on {images:,} images at t = {measured.subject.t_range[1]:g}",
        mass=None if mass is None else measured_mass(mass, log_z.value, measured.dimension),
    )


def mass_checks(measured: Measured) -> list[Check]:
    """Whether the energy integrates to one, and whether log Z is one number at every large noise level."""
    checks, found = [], normalization(measured)
    if "mass" in measured.rows:
        where = f"{in_decibels(schedule(measured)[-1])} dB"
        mass = None if found is None else found.mass
        if mass is not None:
            gap, word = Estimate(mass.nats, mass.stderr), _word(mass)
        else:  # an energy that is not finite where its own gradient leads
            gap, word = Estimate(math.nan, math.nan), Word.undecided
        checks.append(Check(MASS, where, gap, gap.stderr, MASS_TOLERANCE, "nats", said=word))
    if at_large_noise := _without_images(measured):
        variances = normalizer_variances(measured.subject.t_range[1])
        top, *others = at_large_noise
        for t, other in zip(variances[1:], others, strict=True):
            if min(top.share, other.share) >= EVEN:
                gap = bits(other.estimate - top.estimate, measured.dimension)
                where = f"{in_decibels(t)} against {in_decibels(variances[0])} dB"
                checks.append(Check(LOG_Z, where, gap, gap.stderr))
    return checks


def _word(mass: MeasuredMass) -> Word:
    """A limit above the tolerance is proof; a mass of one needs chains that agree."""
    off, share = abs(mass.nats), mass.effective_share
    if mass.limit > MASS_TOLERANCE or (share > 2 * SURE and off - 3.0 * mass.stderr > MASS_TOLERANCE):
        return Word.inconsistent
    return Word.consistent if share > SURE and off + 2.0 * mass.stderr < MASS_TOLERANCE else Word.undecided


def mass_figures(measured: Measured) -> Figure | None:
    """The report's entry: log Z, the mass, where it appears, and log Z without images."""
    found, mass = normalization(measured), _found_mass(measured)
    if found is None:
        return None
    figure: Figure = {**found.plain(), "text": str(found)}
    if mass is not None:
        figure["levels"] = mass.levels
        figure["profile"] = [value - found.value for value in mass.profile]
        figure["chains"] = mass.at.count
    if at_large_noise := _without_images(measured):
        top = at_large_noise[0]
        figure["without_images"] = {"value": top.value, "stderr": top.stderr, "share": top.share}
    return figure
