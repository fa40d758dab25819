"""The likelihood of any denoiser, on 8-bit images that are at hand: the bound, noise levels, and checks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dualscore.denoisers import GivenDenoiser
from dualscore.energy import ScoreModel
from dualscore.errors import ModelError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import Estimate
from dualscore.likelihood.units import LEVELS, STEP, check_clean
from dualscore.measuring.estimators import bound, bound_stages, estimate_figure, ode
from dualscore.measuring.in_memory import by_position, rows_at
from dualscore.measuring.measured import Extent, Grid, Measured
from dualscore.measuring.posterior_mean import (
    asymmetry,
    denoiser_checks,
    errors_at_levels,
    jacobian,
    readings,
    refuse_another_convention,
)
from dualscore.measuring.quantities import noise_levels, ode_energies
from dualscore.measuring.row_figures import Estimated, level_figures
from dualscore.measuring.subject import Stage, Subject
from dualscore.measuring.verdict import Check, Word, overall
from dualscore.noise import in_decibels, variance_at_psnr

PSNR = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0, 0.0, -10.0)
"""Noise levels that are told and checked, in dB, as far as the denoiser knows them."""
PRIOR_VARIANCE = 0.25
"""Of the bound's prior, the same at every frequency: fixed before any image was seen, as it must be."""


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
        if "ode" in self.measured.rows:
            found["ode"] = estimate_figure(ode(self.measured), self.measured)
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
        wrong = [check for check in self.checks if check.word is Word.inconsistent]
        if wrong:
            named = "; ".join(f"{check.name}, {check.where}" for check in wrong)
            return f"INCONSISTENT, as the posterior mean of these images should be: {named}"
        return f"{overall(self.checks).value}: {len(self.checks)} checks of a posterior mean"

    def __str__(self) -> str:
        """The figures, a line each."""
        lines = []
        for name, figure in self.bits_per_dim.items():
            error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.3f}"
            lines.append(f"{name:<22} {figure['value']:.3f}{error} bits/dim, {figure['images']:,} images")
            if (certificate := figure.get("certificate")) and certificate["value"] is not None:
                lines.append(f"{name + ', at most (95 %)':<22} {certificate['value']:.3f}")
        lines.append("dB in  dB out  d_eff")
        for level in self.noise_levels:
            at = in_decibels(level["noise_variance"])
            lines.append(f"{at:<6} {level['psnr_out']:<7.2f} {level['effective_dimension']:.1f}")
        shares = ", ".join(f"{share:.2f} at {in_decibels(t)} dB" for t, share in self.asymmetry)
        lines.append(f"of the Jacobian not symmetric (0 of a gradient): {shares}")
        return "\n".join([*lines, f"verdict: {self.verdict}"])


@torch.no_grad()
def measure(
    denoiser: ScoreModel,
    images: Tensor,
    *,
    photographs: Tensor | None = None,
    t_range: tuple[float, float] | None = None,
    psnr: Sequence[float] = PSNR,
    strata: int = 32,
    ode_images: int = 0,
    checked: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    watch: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> DenoiserReport:
    """Measure the likelihood of a denoiser, with what the checks of its kind say of it.

    Evaluations of the function: up to 2·strata + 2 an image, half of them for the certificate, and of
    `checked` images up to 70 more.

    Args:
        denoiser: of `dualscore.denoisers`, or any score of ours. On the images' device.
        images: x on the 256 grey levels k/255, or uint8, shape (n, C, H, W), n ≥ 2.
        photographs: which photograph each image is of, integers, (n,), over which errors are taken.
        t_range: smallest and largest noise variance, in pixel²; by default what a `GivenDenoiser` knows.
        psnr: noise levels to tell and to check, in dB; those outside the range are left out.
        strata: of ln t in the bound's integral.
        ode_images: how many are followed along the probability flow; the function must be differentiable.
        checked: evenly spaced images for noise levels and checks.
        seed: of all noise, with each image's place.
        batch_size: images at once.
        watch: passes the numbers of the batches on and shows them.

    Returns:
        The report.

    Raises:
        ModelError: if the denoiser cannot be one of these images.
        ValueError: if the images are off their grey levels, or an argument is out of range.
    """
    clean = images.float() / 255.0 if images.dtype == torch.uint8 else images
    if clean.ndim != 4 or len(clean) < 2:
        raise ValueError(f"images must have the shape (n, C, H, W), n ≥ 2, got {tuple(images.shape)}")
    check_clean(clean, LEVELS)
    count, shape = len(clean), tuple(clean.shape[1:])
    t_range = _range_of(denoiser, t_range)
    for name, value, least in (
        ("strata", strata, 1), ("checked", checked, 2), ("batch_size", batch_size, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    if ode_images == 1 or ode_images < 0:
        raise ValueError(f"ode_images must be 0, or 2 or more for an error, got {ode_images}")
    if photographs is not None and photographs.shape != (count,):
        raise ValueError(f"photographs must be {count} numbers, one an image, got {tuple(photographs.shape)}")
    levels = [t for t in sorted(map(variance_at_psnr, psnr)) if t_range[0] <= t <= t_range[1]]
    if not levels or not all(map(math.isfinite, psnr)):
        raise ValueError(f"none of psnr={tuple(psnr)} lies in t_range={t_range}, or one is no number")
    if ode_images:
        _refuse_without_gradient(denoiser, clean[:1], t_range)
    spectrum = PRIOR_VARIANCE * torch.eye(shape[0])[:, :, None, None].expand(-1, -1, *shape[1:])
    prior = StationaryGaussian(torch.full((shape[0],), 0.5), spectrum).to(clean)
    subject = Subject(denoiser, prior, None, quantized=True, dequantize=False, t_range=t_range, seed=seed)
    grid = Grid(*t_range, strata)
    first = min(range(strata), key=lambda i: abs(math.log(grid.edge(i) / (STEP / 2.0) ** 2)))
    measured = Measured(
        subject, math.prod(shape), grid, levels,
        photographs=by_position(photographs), span=(first, strata),
    )  # fmt: skip
    few, at = min(checked, count), {"variances": levels}
    extent = Extent("", "", count, count, 0, ode_images, 1, 1e-3, 0, mirror=False)
    stages = [
        Stage("errors", "", few, errors_at_levels, at),
        Stage("readings", "", few, readings, at),
        noise_levels(levels, "", few),
        Stage("jacobian", "", few, jacobian, at),
        *bound_stages(measured, extent),
    ]
    if ode_images:
        stages.append(Stage("ode", "", min(ode_images, count), ode_energies, {"tolerance": 1e-3}))
    batches = watch(iter(range(sum(-(-stage.count // batch_size) for stage in stages))))
    for stage in stages:
        places = torch.arange(stage.count) * count // stage.count  # evenly spaced
        measured.rows[stage.name] = rows_at(stage, subject, clean, places, batch_size, batches)
        if stage.name == "readings":
            refuse_another_convention(measured)
    return DenoiserReport(measured, denoiser_checks(measured))


def _range_of(denoiser: ScoreModel, t_range: tuple[float, float] | None) -> tuple[float, float]:
    if not isinstance(denoiser, ScoreModel):
        raise ModelError(
            f"a {type(denoiser).__name__} is no denoiser yet: say what it is told and gives by one of "
            "dualscore.denoisers, such as of_pixels(function, t_range=(1e-6, 1e3))"
        )
    if t_range is None:
        if not isinstance(denoiser, GivenDenoiser):
            raise ValueError("t_range is needed: the smallest and largest noise variance that it knows")
        t_range = denoiser.t_range
    if not 0.0 < t_range[0] < t_range[1] < math.inf:
        raise ValueError(f"t_range must be noise variances 0 < smallest < largest, got {t_range}")
    return t_range


def _refuse_without_gradient(denoiser: ScoreModel, clean: Tensor, t_range: tuple[float, float]) -> None:
    """Refuse a function for the ODE whose derivative torch doesn't know: its trace would be that of y/t."""
    if not isinstance(denoiser, GivenDenoiser):
        return
    with torch.enable_grad():
        noisy = clean.clone().requires_grad_()
        given = denoiser.function(noisy, torch.full_like(clean[:, 0, 0, 0], math.sqrt(math.prod(t_range))))
        known = (
            given.requires_grad and torch.autograd.grad(given.sum(), noisy, allow_unused=True)[0] is not None
        )
    if not known:
        raise ModelError(
            "the ODE needs the denoiser's derivative, which it cuts (torch.no_grad, detach, numpy): "
            "leave that out, or leave ode_images at 0"
        )
