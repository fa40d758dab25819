"""What the posterior mean of some images satisfies, and what a denoiser that was wrapped wrongly does not.

A denoiser has no energy, so nothing ties its figures together but this: its error rises with the noise, is
orthogonal to whatever the noisy image tells (the image itself, a constant, what was removed of it), and no
other reading of the same function (another range of pixels, another noise level, other channels first) has a
smaller one. All of it holds in the mean over images of the kind that the denoiser is for, so errors are taken
over photographs; of a gradient the Jacobian is symmetric, too, which few networks are.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.energy import ScoreModel
from dualscore.errors import ModelError
from dualscore.likelihood import Estimate
from dualscore.measuring.estimators import bound, ode
from dualscore.measuring.measured import Measured
from dualscore.measuring.subject import CALIBRATION, LEVELS, Images, Rows, Subject, joined
from dualscore.measuring.verdict import Check, Word
from dualscore.noise import corrupt, in_decibels

BETTER = 0.02  # by which share of its error another reading of the function must be better to be named
ORTHOGONAL = 0.02  # of x − x̂ to y and to 1, in units of the error itself, up to which it is called so
REMOVED = 0.05  # by which share what is removed of the noise may be too much or too little
SURE = 4.0  # deviations over photographs: there are a hundred checks
PROBE = 1e-2  # length of the finite difference, in standard deviations of the noise
SHIFT = 0.9  # of t, either way, for a denoiser that is told another noise level than there is
CONTRAST = 0.25  # of pixels in [0, 1], a variance: the unit of what they hold
WORSE = 1.5  # times the noise's own mean square, from which on what is left of it is no denoiser's
ROUGH = 0.5  # how far ‖Ju‖²/‖u‖² may be above 1 where there is hardly any noise, and J hardly differs from 1
FLOW = 0.1  # bits/dim between the ODE and the bound
NOT_READ = 1e30  # as the error of a reading that asks a function beyond what it knows, or that it refuses
READ_AT = 4  # noise levels at which other readings and the Jacobian are looked at, the lowest among them
_OWN = ("given", "along_noisy", "along_one", "along_removed", "removed")


class Reading(NamedTuple):
    """The same function read in another way."""

    denoise: Callable[[Tensor, Tensor], Tensor]  # of y (B, C, H, W) and t (B,)
    asked_at: Callable[[float], float]  # the noise variance that the function is then asked at


def other_readings(model: ScoreModel, channels: int) -> dict[str, Reading]:
    """What a wrong wrapper may need, by what is then to be said."""

    def scaled(width: float, black: float) -> Reading:
        return Reading(
            lambda y, t: (model.denoise(black + width * y, width**2 * t) - black) / width,
            lambda t: width**2 * t,
        )

    def told(level: Callable[[Tensor], Tensor]) -> Reading:
        return Reading(
            lambda y, t: model.denoise(y, level(t)),
            lambda t: float(level(torch.tensor(t, dtype=torch.float64))),
        )

    found = {
        "its pixels are in [−1, 1], not in [0, 1]": scaled(2.0, -1.0),
        "its pixels are in [0, 1], not in [−1, 1]": scaled(0.5, 0.5),
        "its pixels are in [0, 255], not in [0, 1]": scaled(255.0, 0.0),
        "it is told a variance where it needs a standard deviation": told(torch.sqrt),
        "it is told a deviation where it needs a variance": told(torch.square),
        "it needs a noise level that is 10 % lower in variance": told(lambda t: SHIFT * t),
        "it needs a noise level that is 11 % higher in variance": told(lambda t: t / SHIFT),
        "it gives the noise, or the score, not the image": Reading(
            lambda y, t: y - t.sqrt()[:, None, None, None] * model.denoise(y, t), lambda t: t
        ),
    }
    if channels == 3:
        found["its channels come in the other order"] = Reading(
            lambda y, t: model.denoise(y.flip(1), t).flip(1), lambda t: t
        )
    return found


def read_at(variances: list[float]) -> list[int]:
    """Places of the few levels where more is asked of the function, evenly spaced from the lowest on."""
    count = min(READ_AT, len(variances))
    return [round(i * (len(variances) - 1) / max(1, count)) for i in range(count)]


def errors_at_levels(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """Squared errors over t at each level, and the error along what it must be orthogonal to."""
    rows: dict[str, list[Tensor]] = {name: [] for name in _OWN}
    for place, variance in enumerate(variances):
        noisy, t = _noisy(subject, images, place, variance)
        denoised = subject.model.denoise(noisy, t).double()
        left, away = (images.clean - denoised).flatten(1), (denoised - noisy).flatten(1)
        rows["given"].append(left.square().mean(dim=1) / t)
        rows["along_noisy"].append((left * (noisy - 0.5).flatten(1)).mean(dim=1))
        rows["along_one"].append(left.mean(dim=1))
        rows["along_removed"].append((left * away).mean(dim=1))
        rows["removed"].append(away.square().mean(dim=1))
    return {name: torch.stack(parts, dim=1) for name, parts in rows.items()}


def readings(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """Squared errors over t of other readings at a few levels, `NOT_READ` where they leave what it knows."""
    rows: dict[str, list[Tensor]] = {}
    for name, reading in other_readings(subject.model, images.clean.shape[1]).items():
        for place in read_at(variances):
            noisy, t = _noisy(subject, images, place, variances[place])
            error = torch.full_like(t, NOT_READ)
            if subject.inside(reading.asked_at(variances[place])):
                try:
                    left = reading.denoise(noisy, t) - images.clean
                    error = left.double().square().mean(dim=(1, 2, 3)) / t
                except ModelError:  # another reading may be refused
                    pass
            rows.setdefault(name, []).append(error.double())
    return {name: torch.stack(parts, dim=1) for name, parts in rows.items()}


def jacobian(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """Two probes u, v of the denoiser's Jacobian J by differences: (⟨u, Jv⟩ − ⟨v, Ju⟩)², ‖Ju‖² + ‖Jv‖²."""
    rows: dict[str, list[Tensor]] = {"antisymmetric": [], "whole": []}
    for place in read_at(variances):
        noisy, t = _noisy(subject, images, place, variances[place])
        step = PROBE * math.sqrt(variances[place])
        u, v = (images.noise(subject, CALIBRATION + 200 + 2 * place + i) for i in (0, 1))
        ju, jv = (
            (subject.model.denoise(noisy + step * w, t) - subject.model.denoise(noisy - step * w, t)).double()
            / (2.0 * step)
            for w in (u, v)
        )
        rows["antisymmetric"].append((u * jv - v * ju).sum(dim=(1, 2, 3)).square())
        rows["whole"].append(ju.square().sum(dim=(1, 2, 3)) + jv.square().sum(dim=(1, 2, 3)))
    return {name: torch.stack(parts, dim=1) for name, parts in rows.items()}


def asymmetry(measured: Measured) -> list[tuple[float, float]]:
    """Noise variances, and there the share of the Jacobian that is not symmetric: 0 of a gradient's."""
    rows = measured.rows["jacobian"]
    whole = rows["whole"].mean(dim=0).clamp(min=1e-30)
    shares = (0.5 * rows["antisymmetric"].mean(dim=0) / whole).sqrt().tolist()
    return list(zip((measured.levels[place] for place in read_at(measured.levels)), shares, strict=True))


def refuse_another_convention(measured: Measured) -> None:
    """Refuse a function that makes images worse where there is hardly any noise: ModelError."""
    given = float(measured.rows["errors"]["given"][:, 0].mean())
    if given <= WORSE:
        return
    rows = measured.rows["readings"]
    others = {name: float(values[:, 0].mean()) for name, values in rows.items() if name != "position"}
    name = min(others, key=lambda key: others[key])
    fits = f"; it would fit if {name}" if others[name] <= min(1.05, 0.5 * given) else ""
    raise ModelError(
        f"at {in_decibels(measured.levels[0])} dB denoised images are {given:.3g} times as far off, in mean "
        f"square, as noisy ones: this is no denoiser of pixels in [0, 1] that is told variances{fits}"
    )


def denoiser_checks(measured: Measured) -> list[Check]:
    """What the posterior mean of these images satisfies, at each noise level."""
    rows_of, found = measured.rows, list[Check]()
    rows, others = rows_of["errors"], rows_of["readings"]
    position, names = rows["position"], [in_decibels(t) for t in measured.levels]

    def of(name: str, where: str, values: Tensor, tolerance: float) -> Check:
        gap = measured.mean(values, position)
        check = Check(name, where, gap, gap.stderr, tolerance, "share")
        return replace(check, said=_word(gap, tolerance))

    squares = rows["given"] * torch.tensor(measured.levels, dtype=torch.float64)  # pixel²
    for below, above in pairwise(range(len(names))):
        falls = measured.mean(squares[:, below] - squares[:, above], position)
        wrong = falls.value - falls.quantile(SURE) * falls.stderr > 0.0
        word, where = Word.inconsistent if wrong else Word.consistent, f"{names[below]} to {names[above]} dB"
        rises = "the error rises with the noise"
        found.append(Check(rises, where, falls, falls.stderr, 0.0, "pixel²", said=word))
    for level, name in enumerate(names):
        size = float(squares[:, level].mean())
        spread = math.sqrt(size * (CONTRAST + measured.levels[level]))
        for which, what, unit in (
            ("along_noisy", "the noisy image", spread), ("along_one", "a constant", math.sqrt(size)),
        ):  # fmt: skip
            share = rows[which][:, level] / max(unit, 1e-30)
            found.append(of(f"the error is orthogonal to {what}", f"{name} dB", share, ORTHOGONAL))
        removed = rows["removed"][:, level].mean().clamp(min=1e-30)
        share = rows["along_removed"][:, level] / removed
        found.append(of("as much noise is removed as there is", f"{name} dB", share, REMOVED))
    gain = 0.5 * rows_of["jacobian"]["whole"][:, 0] / measured.dimension - 1.0
    rough = of("its answers are not rounded (half precision?), nor rough", f"{names[0]} dB", gain, ROUGH)
    found.append(rough if rough.gap.value > 0 else replace(rough, said=Word.consistent))
    if "ode" in rows_of:
        found.append(_ode_and_bound(measured))
    for column, level in enumerate(read_at(measured.levels)):
        given = rows["given"][:, level]
        for other in (key for key in others if key != "position"):
            gain = (given - others[other][:, column]) / given.mean().clamp(min=1e-30)
            check = of(
                f"no other reading fits better; one does, if {other}", f"{names[level]} dB", gain, BETTER
            )
            # One that is worse is as it should be.
            if check.word is Word.inconsistent and check.gap.value > 0:
                found.append(check)
    return found


def _ode_and_bound(measured: Measured) -> Check:
    """Of the same images, the ODE's dequantized: of a score they differ by what dequantizing costs."""
    flow, above = ode(measured), bound(measured)
    i, j = joined({"position": flow.position}, {"position": above.position})
    gap = measured.mean(flow.bits[i] - above.bits[j], flow.position[i])
    where = f"{len(i)} images"
    check = Check("the ODE agrees with the bound", where, gap, gap.stderr, FLOW, "bits/dim")
    return replace(check, said=_word(gap, FLOW))


def _word(gap: Estimate, tolerance: float) -> Word:
    """Inconsistent: above the tolerance by `SURE` deviations over photographs; undecided of too few."""
    if not math.isfinite(gap.stderr) or not math.isfinite(gap.value):
        return Word.undecided
    if abs(gap.value) - gap.quantile(SURE) * gap.stderr > tolerance:
        return Word.inconsistent
    return Word.consistent if abs(gap.value) + gap.quantile(2.0) * gap.stderr < tolerance else Word.undecided


def _noisy(subject: Subject, images: Images, place: int, variance: float) -> tuple[Tensor, Tensor]:
    """Images with the noise that belongs to them at a level, (B, C, H, W), and its variance, (B,)."""
    t = images.constant(variance)
    return corrupt(images.clean, images.noise(subject, LEVELS + 100 + place), t), t
