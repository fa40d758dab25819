"""The likelihood of any denoiser, on 8-bit images that are at hand: the bound, noise levels, and checks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from dualscore.denoisers import GivenDenoiser
from dualscore.energy import ScoreModel
from dualscore.errors import ModelError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import Estimate
from dualscore.likelihood.units import LEVELS, STEP, check_clean
from dualscore.measuring.answers import answers, digest, refuse_coupled, refuse_without_gradient
from dualscore.measuring.estimators import (
    ESTIMATORS,
    bound,
    bound_stages,
    estimate_figure,
    limit_label,
    normalizer_stage,
)
from dualscore.measuring.in_memory import KeptRows, by_position, rows_at
from dualscore.measuring.measured import Extent, Grid, Measured
from dualscore.measuring.posterior_mean import (
    asymmetry,
    denoiser_checks,
    errors_at_levels,
    jacobian,
    readings,
    refuse_another_convention,
)
from dualscore.measuring.quantities import noise_levels
from dualscore.measuring.row_figures import Estimated, level_figures
from dualscore.measuring.subject import Stage, Subject
from dualscore.measuring.verdict import Check, Word, overall
from dualscore.noise import in_decibels, variance_at_psnr

PSNR = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0, 0.0, -10.0)
"""Noise levels that are told and checked, in dB, as far as the denoiser knows them."""
PRIOR_VARIANCE = 0.25
"""Of the bound's prior, the same at every frequency: fixed before any image was seen, as it must be."""
PROBED = 8
"""Images of which what a denoiser answers, in every stratum, tells it from others."""
Denoisers = ScoreModel | Callable[[Tensor], ScoreModel]
"""A denoiser, or what gives that of a batch from its images' labels (B,)."""


class StoredImages(Protocol):
    """8-bit images that are read when they are measured; a uint8 tensor (n, C, H, W) is one."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, C, H, W)."""

    def __getitem__(self, places: Tensor) -> Tensor:
        """Images at places (B,), which may be none, uint8, shape (B, C, H, W), on the denoiser's device."""


@dataclass(frozen=True)
class DenoiserReport:
    """What was measured of a denoiser."""

    measured: Measured
    checks: list[Check]

    @cached_property
    def _bound(self) -> Estimated:
        return bound(self.measured)

    @cached_property
    def bits_per_dim(self) -> dict[str, dict[str, Any]]:
        """Each estimate of the likelihood: value, stderr, images, certificate, as in evaluation.json."""
        found = {"bound": estimate_figure(self._bound, self.measured)}
        for name, estimator in ESTIMATORS.items():
            if name in self.measured.rows:
                found[name] = estimate_figure(estimator.found(self.measured), self.measured)
        return found

    @property
    def bound(self) -> Estimate:
        """The upper bound on −log₂ P(x)/d of the images' mean, with its error over photographs."""
        return self.measured.mean(self._bound.bits, self._bound.position)

    @property
    def images(self) -> dict[str, Tensor]:
        """Each image's place, (n,), and its own estimate of the bound, bits/dim, (n,)."""
        return {"position": self._bound.position, "bits_per_dim": self._bound.bits}

    @property
    def noise_levels(self) -> list[dict[str, Any]]:
        """Denoised PSNR and effective dimension at each noise level."""
        m = self.measured
        levels = map(asdict, level_figures(m.rows["noise_levels"], m.levels, m.dimension))
        return [{key: value for key, value in level.items() if key != "time_loss"} for level in levels]

    @property
    def asymmetry(self) -> list[tuple[float, float]]:
        """Noise variances, and there the share of the Jacobian that is not symmetric: 0 of a gradient's."""
        return asymmetry(self.measured)

    @property
    def verdict(self) -> str:
        """One line: what is wrong of it as the posterior mean of these images, or that nothing was found."""
        wrong: dict[str, list[str]] = {}
        for check in self.checks:
            if check.word is Word.inconsistent:
                wrong.setdefault(check.name, []).append(check.where)
        if wrong:
            levels = {name: ", ".join(where).replace(" dB, ", ", ") for name, where in wrong.items()}
            named = "; ".join(f"{name}, {where}" for name, where in levels.items())
            return f"INCONSISTENT, as the posterior mean of these images should be: {named}"
        return f"{overall(self.checks).value}: {len(self.checks)} checks of a posterior mean"

    def __str__(self) -> str:
        """The figures, a line each."""
        lines = []
        for name, figure in self.bits_per_dim.items():
            error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.3f}"
            lines.append(f"{name:<22} {figure['value']:.3f}{error} bits/dim, {figure['images']:,} images")
            if (certificate := figure.get("certificate")) and certificate["value"] is not None:
                lines.append(f"{limit_label(name):<22} {certificate['value']:.3f}")
        lines.append("dB in  dB out  d_eff")
        for level in self.noise_levels:
            at = in_decibels(level["noise_variance"])
            lines.append(f"{at:<6} {level['psnr_out']:<7.2f} {level['effective_dimension']:.1f}")
        shares = ", ".join(f"{share:.2f} at {in_decibels(t)} dB" for t, share in self.asymmetry)
        lines.append(f"of the Jacobian not symmetric (0 of a gradient): {shares}")
        return "\n".join([*lines, f"verdict: {self.verdict}"])


@torch.no_grad()
def measure(
    denoiser: Denoisers,
    images: Tensor | StoredImages,
    *,
    labels: Tensor | None = None,
    photographs: Tensor | None = None,
    t_range: tuple[float, float] | None = None,
    prior: StationaryGaussian | None = None,
    psnr: Sequence[float] = PSNR,
    strata: int = 32,
    ode_images: int = 0,
    checked: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    kept: Callable[[str, dict[str, Any]], KeptRows] | None = None,
    watch: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> DenoiserReport:
    """Measure the likelihood of a denoiser, with what the checks of its kind say of it.

    Evaluations of the function: up to 2·strata + 2 an image, half of them for the certificate, and of
    `checked` images up to 70 more. Of an energy its own likelihood is measured too.

    Args:
        denoiser: of `dualscore.denoisers`, or any score of ours; with `labels` a function of a batch's labels
            (B,) that gives its denoiser. On the images' device.
        images: x on the 256 grey levels k/255, or uint8, shape (n, C, H, W), n ≥ 2; or what reads them.
        labels: a class of each image, (n,), for denoisers that need one.
        photographs: which photograph each image is of, integers, (n,), over which errors are taken.
        t_range: smallest and largest noise variance, in pixel²; by default what a `GivenDenoiser` knows.
        prior: a Gaussian that these images did not choose, for the bound's last step and an energy's log Z;
            by default one of a standard deviation of a half.
        psnr: noise levels to tell and to check, in dB; those outside the range are left out.
        strata: of ln t in the bound's integral.
        ode_images: how many are followed along the probability flow; the function must be differentiable.
        checked: evenly spaced images for noise levels and checks.
        seed: of all noise, with each image's place.
        batch_size: images at once.
        kept: where the rows of a stage are kept, of its name and of what decides them, so that the same call
            goes on where it stopped; `dualscore.kept_rows(folder)` is one.
        watch: passes the numbers of the batches on and shows them.

    Returns:
        The report.

    Raises:
        ModelError: if the denoiser cannot be one of these images.
        ValueError: if the images are off their grey levels, or an argument is out of range.
    """
    stored: Tensor | StoredImages = images
    if isinstance(images, Tensor) and images.dtype != torch.uint8:
        check_clean(images, LEVELS)
    count, *shape = images.shape
    if len(shape) != 3 or count < 2 or 0 in shape:
        raise ValueError(f"images must have the shape (n, C, H, W), n ≥ 2, got {tuple(images.shape)}")
    for name, found, least in (
        ("strata", strata, 1), ("batch_size", batch_size, 1), ("checked", checked, 2),
        ("ode_images", ode_images, 2 if ode_images else 0),
    ):  # fmt: skip
        if found < least:
            raise ValueError(f"{name} must be {least} or more, got {found}")
    for name, numbers in (("photographs", photographs), ("labels", labels)):
        if numbers is not None and numbers.shape != (count,):
            raise ValueError(f"{name} must be {count} numbers, one an image, got {tuple(numbers.shape)}")

    def pixels(position: Tensor) -> Tensor:
        at = position.to(stored.device) if isinstance(stored, Tensor) else position
        return _pixels(stored[at])

    first = pixels(torch.arange(1))
    given = _given(denoiser, labels, torch.arange(1))
    t_range = _range_of(given, t_range)
    levels = [t for t in sorted(map(variance_at_psnr, psnr)) if t_range[0] <= t <= t_range[1]]
    if not levels or not all(map(math.isfinite, psnr)):
        raise ValueError(f"none of psnr={tuple(psnr)} lies in t_range={t_range}, or one is no number")
    if ode_images:
        refuse_without_gradient(given, first, t_range)
    if prior is None:
        spectrum = PRIOR_VARIANCE * torch.eye(shape[0])[:, :, None, None].expand(-1, -1, *shape[1:])
        prior = StationaryGaussian(torch.full((shape[0],), 0.5), spectrum)
    subject = Subject(
        given, prior.to(first), None, quantized=True, dequantize=False, t_range=t_range, seed=seed
    )
    grid = Grid(*t_range, strata)
    start = min(range(strata), key=lambda i: abs(math.log(grid.edge(i) / (STEP / 2.0) ** 2)))
    measured = Measured(
        subject, math.prod(shape), grid, levels, photographs=by_position(photographs), span=(start, strata)
    )

    def at(position: Tensor) -> tuple[Subject, Tensor]:
        mine = subject if labels is None else replace(subject, model=_given(denoiser, labels, position))
        return mine, pixels(position)

    some = _evenly(min(PROBED, count), count)
    refuse_coupled(at, some)
    identity: dict[str, Any] = {"shape": list(images.shape), "seed": seed, "t_range": list(t_range)}
    if kept is not None:
        every = (pixels(position) for position in torch.split(torch.arange(count), batch_size))
        parts = (subject.prior.mean, subject.prior.eigenvalues, *([] if labels is None else [labels]))
        identity |= {"answers": answers(*at(some), grid), "images": digest(chain(every, parts))}
    stages = _stages(measured, min(checked, count), count, min(ode_images, count))
    batches = watch(iter(range(sum(-(-stage.count // batch_size) for stage in stages))))
    for stage in stages:
        places = _evenly(stage.count, count)
        store = None if kept is None else kept(stage.name, identity | stage.settings | {"count": stage.count})
        measured.rows[stage.name] = rows_at(stage, places, batch_size, at, store, batches)
        if stage.name == "readings":
            refuse_another_convention(measured)
    return DenoiserReport(measured, denoiser_checks(measured))


def _stages(measured: Measured, few: int, count: int, ode_images: int) -> list[Stage]:
    """What is measured, in order: what may refuse the denoiser first."""
    levels, at = measured.levels, {"variances": measured.levels}
    extent = Extent("", "", count, count, 0, ode_images, 1, 1e-3, 0, mirror=False)
    own = [normalizer_stage(measured.subject, "", count), *ESTIMATORS["dequantized"].stages(measured, extent)]
    return [
        Stage("errors", "", few, errors_at_levels, at),
        Stage("readings", "", few, readings, at),
        noise_levels(levels, "", few),
        Stage("jacobian", "", few, jacobian, at),
        *bound_stages(measured, extent),
        *(own if measured.subject.is_energy else []),
        *(ESTIMATORS["ode"].stages(measured, extent) if ode_images else []),
    ]


def _evenly(chosen: int, count: int) -> Tensor:
    """Places of so many of all images, evenly spaced."""
    return torch.arange(chosen) * count // chosen


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255.0 if images.dtype == torch.uint8 else images


def _given(denoiser: Denoisers, labels: Tensor | None, position: Tensor) -> ScoreModel:
    """The denoiser of the images at places (B,)."""
    if labels is not None and isinstance(denoiser, ScoreModel):
        raise ValueError("labels are for a function of them that gives the denoiser: lambda labels: of_…")
    found = denoiser if labels is None else denoiser(labels[position])
    if not isinstance(found, ScoreModel):
        raise ModelError(
            f"a {type(found).__name__} is no denoiser yet: say what it is told and gives by one of "
            "dualscore.denoisers, such as of_pixels(function, t_range=(1e-6, 1e3))"
        )
    return found


def _range_of(denoiser: ScoreModel, t_range: tuple[float, float] | None) -> tuple[float, float]:
    if t_range is None:
        if not isinstance(denoiser, GivenDenoiser):
            raise ValueError("t_range is needed: the smallest and largest noise variance that it knows")
        t_range = denoiser.t_range
    if not 0.0 < t_range[0] < t_range[1] < math.inf:
        raise ValueError(f"t_range must be noise variances 0 < smallest < largest, got {t_range}")
    return t_range
