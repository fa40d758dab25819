"""The likelihood of any denoiser, on 8-bit images that are at hand: the bound, noise levels, and checks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dualscore.denoisers import GivenDenoiser
from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import Estimate
from dualscore.likelihood.units import LEVELS as GREY_LEVELS
from dualscore.likelihood.units import STEP, check_clean
from dualscore.measuring.estimators import bound, bound_stages, estimate_figure
from dualscore.measuring.measured import Extent, Grid, Measured
from dualscore.measuring.posterior_mean import denoiser_checks, jacobian, readings, refuse_another_convention
from dualscore.measuring.quantities import noise_levels, ode_energies
from dualscore.measuring.row_figures import Estimated, level_figures
from dualscore.measuring.subject import Images, Rows, Stage, Subject, plain_rows
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

    @property
    def bits_per_dim(self) -> dict[str, dict[str, Any]]:
        """Each estimate of the likelihood: value, stderr, images, certificate, as in evaluation.json."""
        found = {"bound": estimate_figure(bound(self.measured), self.measured)}
        if "ode" in self.measured.rows:
            rows = self.measured.rows["ode"]
            bits = self.measured.density_bits(rows["energy"])
            found["ode"] = estimate_figure(
                Estimated(rows["position"], bits, int(rows["evaluations"].sum())), self.measured
            )
        return found

    @property
    def bound(self) -> Estimate:
        """The upper bound on −log₂ P(x)/d of the images' mean, with its error over photographs."""
        found = bound(self.measured)
        return self.measured.mean(found.bits, found.position)

    @property
    def noise_levels(self) -> list[dict[str, Any]]:
        """Denoised PSNR and effective dimension at each noise level."""
        m = self.measured
        levels = map(asdict, level_figures(m.rows["noise_levels"], m.levels, m.dimension))
        return [{key: value for key, value in level.items() if key != "time_loss"} for level in levels]

    @property
    def images(self) -> dict[str, Tensor]:
        """Each image's place, (n,), and its own estimate of the bound, bits/dim, (n,)."""
        found = bound(self.measured)
        return {"position": found.position, "bits_per_dim": found.bits}

    @property
    def verdict(self) -> str:
        """One line: what is inconsistent, or that nothing was found."""
        wrong = [check for check in self.checks if check.word is Word.inconsistent]
        if wrong:
            return "INCONSISTENT: " + "; ".join(f"{check.name}, {check.where}" for check in wrong)
        return f"{overall(self.checks).value}: {len(self.checks)} checks" if self.checks else "not checked"

    def __str__(self) -> str:
        """The figures, a line each."""
        lines = []
        for name, figure in self.bits_per_dim.items():
            lines.append(f"{name:<22} {_shown(figure)} bits/dim, {figure['images']:,} images")
            if (certificate := figure.get("certificate")) and certificate["value"] is not None:
                lines.append(f"{name + ', at most (95 %)':<22} {certificate['value']:.3f}")
        lines.append("dB in  dB out  d_eff")
        for level in self.noise_levels:
            at = in_decibels(level["noise_variance"])
            lines.append(f"{at:<6} {level['psnr_out']:<7.2f} {level['effective_dimension']:.1f}")
        return "\n".join([*lines, f"verdict: {self.verdict}"])


def _shown(figure: dict[str, Any]) -> str:
    error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.3f}"
    return f"{figure['value']:.3f}{error}"


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
    checked: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    watch: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> DenoiserReport:
    """Measure the likelihood of a denoiser, with what the checks of its kind say of it.

    Args:
        denoiser: of `dualscore.denoisers`, or any score of ours. On the images' device.
        images: x on the 256 grey levels k/255, or uint8, shape (n, C, H, W), n ≥ 2.
        photographs: which photograph each image is of, integers, (n,), over which errors are taken.
        t_range: smallest and largest noise variance, in pixel²; by default what a `GivenDenoiser` knows.
        psnr: noise levels to tell and to check, in dB; those outside the range are left out.
        strata: of ln t in the bound's integral, an evaluation of the network each, and one for the decoder.
        ode_images: how many are followed along the probability flow; the function must be differentiable.
        checked: images for noise levels and checks, a few evaluations each.
        seed: of all noise, with each image's place.
        batch_size: images at once.
        watch: passes the numbers of the batches on and shows them.

    Returns:
        The report.

    Raises:
        ModelError: if the denoiser cannot be one of these images.
        ValueError: if the images are off their grey levels, or none.
    """
    clean = images.float() / 255.0 if images.dtype == torch.uint8 else images
    if clean.ndim != 4 or len(clean) < 2:
        raise ValueError(f"images must have the shape (n, C, H, W), n ≥ 2, got {tuple(images.shape)}")
    check_clean(clean, GREY_LEVELS)
    if t_range is None:
        if not isinstance(denoiser, GivenDenoiser):
            raise ValueError("t_range is needed: the smallest and largest noise variance that it knows")
        t_range = denoiser.t_range
    shape = tuple(clean.shape[1:])
    spectrum = PRIOR_VARIANCE * torch.eye(shape[0])[:, :, None, None].expand(-1, -1, *shape[1:])
    prior = StationaryGaussian(torch.full((shape[0],), 0.5), spectrum).to(clean)
    subject = Subject(denoiser, prior, None, quantized=True, dequantize=False, t_range=t_range, seed=seed)
    levels = [t for t in sorted(map(variance_at_psnr, psnr)) if t_range[0] <= t <= t_range[1]]
    groups = None if photographs is None else photographs.cpu()
    grid = Grid(*t_range, strata)
    first = min(range(strata), key=lambda i: abs(math.log(grid.edge(i) / (STEP / 2.0) ** 2)))
    measured = Measured(
        subject, math.prod(shape), grid, levels,
        photographs=lambda position: None if groups is None else groups[position], span=(first, strata),
    )  # fmt: skip
    count, few = len(clean), min(checked, len(clean))
    extent = Extent("", "", count, count, 0, ode_images, 1, 1e-3, 0, mirror=False)
    stages = [
        Stage("readings", "", few, readings, {"variances": levels}),
        noise_levels(levels, "", few),
        Stage("jacobian", "", few, jacobian, {"variances": levels}),
        *bound_stages(measured, extent),
    ]
    if ode_images:
        stages.append(Stage("ode", "", min(ode_images, count), ode_energies, {"tolerance": 1e-3}))
    batches = watch(iter(range(sum(-(-stage.count // batch_size) for stage in stages))))
    for stage in stages:
        measured.rows[stage.name] = _rows(stage, subject, clean, batch_size, batches)
        if stage.name == "readings":
            refuse_another_convention(measured)
    return DenoiserReport(measured, denoiser_checks(measured))


def _rows(stage: Stage, subject: Subject, clean: Tensor, batch_size: int, batches: Iterator[int]) -> Rows:
    """A stage's rows of the first images, in double precision on the CPU."""
    parts = []
    for start in range(0, stage.count, batch_size):
        next(batches, None)
        position = torch.arange(start, min(start + batch_size, stage.count))
        found = stage.measure(subject, Images(clean[start : start + len(position)], position.tolist()))
        parts.append(plain_rows({"position": position, **found}))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
