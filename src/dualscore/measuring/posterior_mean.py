"""What every posterior mean satisfies, and what a denoiser that was wrapped wrongly does not.

A denoiser has no energy, so nothing ties its figures together but this: its error rises with the noise, is
orthogonal to whatever the noisy image tells (the image itself, a constant, what was removed of it), and no
other reading of the same function (another range of pixels, another noise level, other channels first) has a
smaller one; its Jacobian is symmetric.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dualscore.energy import ScoreModel
from dualscore.errors import ModelError
from dualscore.likelihood import mean
from dualscore.measuring.measured import Measured
from dualscore.measuring.subject import CALIBRATION, LEVELS, Images, Rows, Subject
from dualscore.measuring.verdict import Check, Word
from dualscore.noise import corrupt, in_decibels

BETTER = 0.02  # by which share of its error another reading of the function must be better to be named
ORTHOGONAL = 0.02  # of x − x̂ to y and to 1, in units of the error itself, up to which it is called so
REMOVED = 0.05  # by which share what is removed of the noise may be too much or too little
SYMMETRIC = 0.05  # of the Jacobian's antisymmetric part, in units of the whole
PROBE = 1e-2  # length of the finite difference, in standard deviations of the noise
_OWN = ("given", "along_noisy", "along_one", "along_removed", "removed")
SHIFT = 0.9  # of t, either way, for a denoiser that is told another noise level than there is
CONTRAST = 0.25  # of pixels in [0, 1], a variance: the unit of what they hold


def other_readings(model: ScoreModel, channels: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The same function read in other ways, each of y (B, C, H, W) and t (B,), as a wrapper may need."""

    def scaled(width: float, black: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda y, t: (model.denoise(black + width * y, width**2 * t) - black) / width

    found = {
        "its pixels are in [−1, 1], not in [0, 1]": scaled(2.0, -1.0),
        "its pixels are in [0, 1], not in [−1, 1]": scaled(0.5, 0.5),
        "its pixels are in [0, 255], not in [0, 1]": scaled(255.0, 0.0),
        "it is told a variance where it needs a standard deviation": lambda y, t: model.denoise(y, t.sqrt()),
        "it is told a standard deviation where it needs a variance": lambda y, t: model.denoise(
            y, t.square()
        ),
        "it needs a noise level that is 10 % lower in variance": lambda y, t: model.denoise(y, SHIFT * t),
        "it needs a noise level that is 11 % higher in variance": lambda y, t: model.denoise(y, t / SHIFT),
        "it gives the noise, or the score, not the image": lambda y, t: (
            y - t.sqrt()[:, None, None, None] * model.denoise(y, t)
        ),
    }
    if channels == 3:
        found["its channels come in the other order"] = lambda y, t: model.denoise(y.flip(1), t).flip(1)
    return found


def readings(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """Squared errors over t at each level, as given and by other readings; the error along y and more."""
    clean, model = images.clean, subject.model
    others = other_readings(model, clean.shape[1])
    rows: dict[str, list[Tensor]] = {name: [] for name in (*_OWN, *others)}
    for place, variance in enumerate(variances):
        noise, t = images.noise(subject, LEVELS + 100 + place), images.constant(variance)
        noisy = corrupt(clean, noise, t)

        def error(denoised: Tensor, t: Tensor = t) -> Tensor:
            return (denoised.double() - clean).square().mean(dim=(1, 2, 3)) / t

        denoised = model.denoise(noisy, t).double()
        left = (clean - denoised).flatten(1)
        rows["given"].append(error(denoised))
        rows["along_noisy"].append((left * (noisy - 0.5).double().flatten(1)).mean(dim=1))
        rows["along_one"].append(left.mean(dim=1))
        away = (denoised - noisy).flatten(1)
        rows["along_removed"].append((left * away).mean(dim=1))
        rows["removed"].append(away.square().mean(dim=1))
        for name, read in others.items():
            rows[name].append(_error_or_infinite(partial(read, noisy, t), error, clean))
    return {name: torch.stack(parts, dim=1) for name, parts in rows.items()}


def _error_or_infinite(
    denoised: Callable[[], Tensor], error: Callable[[Tensor], Tensor], clean: Tensor
) -> Tensor:
    """The error of a reading, infinite where the function refuses it, (B,)."""
    try:
        return error(denoised()).nan_to_num(math.inf, math.inf)
    except ModelError:
        return clean.new_full((len(clean),), math.inf, dtype=torch.float64)


def jacobian(subject: Subject, images: Images, variances: list[float]) -> Rows:
    """Two probes u, v of the denoiser's Jacobian J by differences: (⟨u, Jv⟩ − ⟨v, Ju⟩)², ‖Ju‖² + ‖Jv‖²."""
    rows: dict[str, list[Tensor]] = {"antisymmetric": [], "whole": []}
    for place, variance in enumerate(variances):
        t = images.constant(variance)
        noisy = corrupt(images.clean, images.noise(subject, LEVELS + 100 + place), t)
        step = PROBE * math.sqrt(variance)
        probes = [images.noise(subject, CALIBRATION + 200 + 2 * place + i) for i in (0, 1)]
        pulled = [
            (subject.model.denoise(noisy + step * v, t) - subject.model.denoise(noisy - step * v, t)).double()
            / (2.0 * step)
            for v in probes
        ]
        (u, v), (ju, jv) = probes, pulled
        rows["antisymmetric"].append((u * jv - v * ju).sum(dim=(1, 2, 3)).square())
        rows["whole"].append(ju.square().sum(dim=(1, 2, 3)) + jv.square().sum(dim=(1, 2, 3)))
    return {name: torch.stack(parts, dim=1) for name, parts in rows.items()}


def refuse_another_convention(measured: Measured) -> None:
    """Refuse a function that makes images worse where there is hardly any noise: ModelError."""
    rows, levels = measured.rows["readings"], measured.levels
    if not levels:
        raise ModelError("none of the noise levels in psnr is among those that the denoiser knows")
    given = float(rows["given"][:, 0].mean())
    if given <= 1.5:
        return
    others = {name: float(rows[name][:, 0].mean()) for name in _others(rows)}
    name = min(others, key=lambda key: others[key])
    fits = f"; it would fit if {name}" if others[name] <= 1.05 else ""
    raise ModelError(
        f"at {in_decibels(levels[0])} dB denoised images are {given:.3g} times as far off, in mean square, "
        f"as noisy ones: this is no denoiser of pixels in [0, 1] that is told variances{fits}"
    )


def denoiser_checks(measured: Measured) -> list[Check]:
    """What every posterior mean satisfies, at each noise level."""
    rows, found = measured.rows["readings"], []
    position, names = rows["position"], [in_decibels(t) for t in measured.levels]

    def of(name: str, where: str, values: Tensor, tolerance: float, unit: str) -> Check:
        gap, here = measured.mean(values, position), mean(values).stderr
        return Check(name, where, gap, here, tolerance, unit)

    squares = rows["given"] * torch.tensor(measured.levels, dtype=torch.float64)  # pixel²
    for below in range(len(names) - 1):
        gap = (squares[:, below] - squares[:, below + 1]) / squares[:, below + 1].mean()
        rises = of(
            "error falls as noise rises", f"{names[below]} to {names[below + 1]} dB", gap, 0.0, "share"
        )
        word = Word.inconsistent if rises.gap.value > 3.0 * rises.here else Word.consistent
        found.append(Check(rises.name, rises.where, rises.gap, rises.here, 0.0, "share", said=word))
    for level, name in enumerate(names):
        given = rows["given"][:, level]
        size = squares[:, level].mean()
        spread = math.sqrt(float(size) * (CONTRAST + measured.levels[level]))
        along = ("along_noisy", "the noisy image", spread), ("along_one", "a constant", float(size.sqrt()))
        for which, what, unit in along:
            share = rows[which][:, level] / unit
            found.append(of(f"the error is orthogonal to {what}", f"{name} dB", share, ORTHOGONAL, "share"))
        removed = rows["removed"][:, level].mean()
        share = rows["along_removed"][:, level] / removed if removed > 0 else rows["removed"][:, level]
        found.append(of("as much noise is removed as there is", f"{name} dB", share, REMOVED, "share"))
        for other in _others(rows):
            gain = (given - rows[other][:, level]) / given.mean()
            if not bool(gain.isfinite().all()):
                continue
            check = of(f"it fits better if {other}", f"{name} dB", gain, BETTER, "share")
            # Only a reading that is better tells; one that is worse is as it should be.
            better = check.gap.value - 3.0 * check.here > BETTER
            if better:
                found.append(replace(check, said=Word.inconsistent))
        probes = measured.rows["jacobian"]
        share = probes["antisymmetric"][:, level] / probes["whole"][:, level].mean()
        found.append(
            Check(
                "the Jacobian is symmetric", f"{name} dB", measured.mean(share, position),
                mean(share).stderr, SYMMETRIC, "share", square=True, decisive=False,
            )
        )  # fmt: skip
    return found


def _others(rows: Rows) -> list[str]:
    """The other readings that were tried."""
    return [name for name in rows if name not in (*_OWN, "position")]
