"""The estimates of a likelihood: their table, and how each comes from rows to bits/dim of each image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dualscore.likelihood import Estimate, bits, bits_per_dim, dequantized_bits_per_dim
from dualscore.likelihood.bound import BoundTerms, diffusion_energy
from dualscore.likelihood.certificate import BoundedRows, certify
from dualscore.measuring.measured import Extent, Measured
from dualscore.measuring.quantities import (
    certificate,
    clean_energies,
    dequantized_energies,
    ends,
    noisy_energies,
    ode_energies,
    strata,
)
from dualscore.measuring.row_figures import Figure, plain
from dualscore.measuring.subject import Stage, joined


@dataclass(frozen=True)
class Estimated:
    """One estimate of the images' likelihood."""

    position: Tensor  # the images' positions, as in rows, shape (n,)
    bits: Tensor  # bits/dim of each, shape (n,); of an estimate of an energy, without log Z
    evaluations: int  # network evaluations over all images, without those of log Z
    also: Figure = field(default_factory=dict)  # more entries of the report

    def figure(self, measured: Measured, energy: bool) -> Figure:
        """The report's entry: the mean, its error over photographs (a shared log Z's included), the cost."""
        found = measured.mean(self.bits, self.position)
        total = found + measured.shared if energy else found
        normalizing = measured.rows["normalizer"]["energy"].numel() if energy else 0
        low, high = Estimate(total.value, total.stderr, found.groups).interval()
        known = measured.photographs(self.position) is not None
        return {
            **plain(total),
            "interval": [low, high] if found.groups > 1 else None,
            "images": len(self.bits),
            "photographs": found.groups if known else None,
            "evaluations": self.evaluations + normalizing,
            **self.also,
        }


@dataclass(frozen=True)
class Estimator:
    """An estimate of the likelihood, as experiments name it in `evaluate.estimators`."""

    label: str  # its name in tables
    kind: str  # the kind of figure, in table 2
    stages: Callable[[Measured, Extent], list[Stage]]  # the stages whose rows it reads, beside log Z's
    estimate: Callable[[Measured], Estimated]  # from rows to each image's bits/dim
    energy: bool = False  # whether it needs an energy; log Z and its error are then added
    discrete: bool = False  # whether it needs 8-bit images


FEWEST_FOR_NORMALIZER = 64
NORMALIZER_SHARE = 16  # log Z is estimated on one image in this many: its noise is far below that of U(x, 0)


def normalizer_count(images: int) -> int:
    """Images that log Z is estimated on."""
    return min(images, max(FEWEST_FOR_NORMALIZER, images // NORMALIZER_SHARE))


def paper_stages(measured: Measured, extent: Extent) -> list[Stage]:
    """U(x, 0) of the reported images, and beside it the same protocol on training images."""
    train, t_max = extent.train_images, measured.subject.t_range[1]
    return [
        clean_energies(extent.reported, extent.images, "paper"),
        noisy_energies([t_max], "train", normalizer_count(train), "train_normalizer"),
        clean_energies("train", train, "train_paper"),
    ]


def paper(measured: Measured) -> Estimated:
    """The paper's protocol."""
    clean = measured.rows["paper"]
    also = {"log_normalizer": plain(measured.log_z)}
    return Estimated(
        clean["position"], bits_per_dim(clean["energy"], measured.dimension), len(clean["energy"]), also
    )


def dequantized(measured: Measured) -> Estimated:
    """Uniform dequantization: each image's figure is the mean over its draws of u."""
    rows = measured.rows["dequantized"]
    found = dequantized_bits_per_dim(rows["energy"].mean(dim=1), measured.dimension)
    return Estimated(rows["position"], found, rows["energy"].numel(), {"draws": rows["energy"].shape[1]})


def bound_stages(measured: Measured, extent: Extent) -> list[Stage]:
    """The denoiser's errors between t0 and t1, and what the bound has at its ends."""
    grid, (first, last) = measured.grid, measured.span
    t0, t1, mirror = grid.edge(first), grid.edge(last), extent.mirror
    images = extent.reported, extent.subset
    return [
        strata(*images, grid.number, (first, last), "bound_strata", mirror),
        ends(*images, [t0], [t1], "ends", mirror),
        certificate(*images, (t0, t1), last - first, mirror),
    ]


def bound(measured: Measured) -> Estimated:
    """The variational bound, one unbiased estimate an image."""
    m, rows = measured, measured.rows
    inside, ending = rows["bound_strata"], rows["ends"]
    a, b = joined(inside, ending)
    space = inside["space"][a]
    diffusion = diffusion_energy(space, m.dimension, m.grid.width)
    terms = BoundTerms(ending["decoder"][b, 0], diffusion, ending["prior"][b, 0])
    position = inside["position"][a]
    used = m.span[1] - m.span[0]
    pilots = rows["pilot"]["space"].numel() + rows["pilot_ends"]["decoder"].numel()
    also = {
        "t0": m.grid.edge(m.span[0]),
        "t1": m.grid.edge(m.span[1]),
        "strata": used,
        "parts": {
            name: plain(bits(m.mean(part, position), m.dimension)) for name, part in terms._asdict().items()
        },
    }
    also["certificate"] = _certificate(m)
    return Estimated(position, bits(terms.total, m.dimension), len(a) * (used + 1) + pilots, also)


def _certificate(measured: Measured) -> Figure:
    """An upper limit on the bound of these very images, in bits/dim, without assuming a normal law."""
    m, rows = measured, measured.rows["certificate"]
    span = m.grid.edge(m.span[0]), m.grid.edge(m.span[1])
    draws = BoundedRows(rows["decoder"], rows["space"], rows["prior"], m.dimension, *span)
    found = certify(draws)
    infinite = math.isinf(found.limit)
    return {
        "value": None if infinite else bits(found.limit, m.dimension),
        "estimate": bits(found.estimate, m.dimension),
        "confidence": found.confidence,
        "images": len(rows["decoder"]),
        "evaluations": rows["decoder"].numel() + rows["space"].numel(),
    }


def ode(measured: Measured) -> Estimated:
    """The probability-flow ODE of the dequantized images."""
    rows = measured.rows["ode"]
    return Estimated(rows["position"], measured.density_bits(rows["energy"]), int(rows["evaluations"].sum()))


ESTIMATORS: dict[str, Estimator] = {
    "paper": Estimator("paper's protocol", "estimate, one evaluation", paper_stages, paper, energy=True),
    "dequantized": Estimator(
        "dequantized",
        "bound, if normalized",
        lambda _, extent: [dequantized_energies(extent.reported, extent.images, extent.draws)],
        dequantized,
        energy=True,
        discrete=True,
    ),
    "bound": Estimator("bound", "upper bound", bound_stages, bound, discrete=True),
    "ode": Estimator(
        "ODE",
        "ODE",
        lambda _, extent: [ode_energies(extent.reported, extent.ode_images, extent.ode_tolerance)],
        ode,
    ),
}
"""In the order of the report, where those of an energy come first; docs/extending.md adds one."""


def usable(names: Sequence[str], measured: Measured) -> dict[str, Estimator]:
    """The named estimators that the model can have, in table order: a denoiser has no energy."""
    return {
        name: estimator
        for name, estimator in ESTIMATORS.items()
        if name in names and (measured.subject.is_energy or not estimator.energy)
    }


def label(name: str) -> str:
    """An estimate's name in tables; a report may hold one that is not known here."""
    return ESTIMATORS[name].label if name in ESTIMATORS else name


def kind(name: str) -> str:
    """An estimate's kind in table 2; a report may hold one that is not known here."""
    return ESTIMATORS[name].kind if name in ESTIMATORS else "estimate"
