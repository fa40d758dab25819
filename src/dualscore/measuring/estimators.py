"""The estimates of a likelihood: their table, and how each comes from rows to bits/dim of each image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dualscore.likelihood import Estimate, bits, bits_per_dim, dequantized_bits_per_dim
from dualscore.likelihood.bound import BoundTerms, diffusion_energy
from dualscore.likelihood.certificate import BoundedRows, certify
from dualscore.measuring.coded import STEPS, coded
from dualscore.measuring.measured import PILOT_IMAGES, Extent, Measured
from dualscore.measuring.quantities import (
    certificate,
    clean_energies,
    dequantized_energies,
    ends,
    noisy_energies,
    ode_energies,
    strata,
)
from dualscore.measuring.row_figures import Estimated, Figure, plain
from dualscore.measuring.subject import Stage, Subject, joined


@dataclass(frozen=True)
class Estimator:
    """An estimate of the likelihood, as experiments name it in `evaluate.estimators`."""

    label: str  # its name in tables
    kind: str  # the kind of figure, in table 2
    stages: Callable[[Measured, Extent], list[Stage]]  # the stages whose rows it reads, beside log Z's
    estimate: Callable[[Measured], Estimated]  # from rows to each image's bits/dim
    energy: bool = False  # whether it needs an energy; log Z and its error are then added
    discrete: bool = False  # whether it needs 8-bit images
    costly: bool = False  # whether dashboards have it only where it is asked for

    def found(self, measured: Measured) -> Estimated:
        """The estimate, with log Z as what all images share if it is of an energy."""
        return replace(self.estimate(measured), shared=measured.shared if self.energy else None)


FEWEST_FOR_NORMALIZER = 64
NORMALIZER_SHARE = 16  # log Z is estimated on one image in this many: its noise is far below that of U(x, 0)


def normalizer_stage(subject: Subject, split: str, images: int, name: str = "normalizer") -> Stage:
    """U(y, t_max) for log Z, on a share of the images."""
    count = min(images, max(FEWEST_FOR_NORMALIZER, images // NORMALIZER_SHARE))
    return Stage(name, split, count, noisy_energies, {"variances": [subject.t_range[1]]})


def paper_stages(measured: Measured, extent: Extent) -> list[Stage]:
    """U(x, 0) of the reported images, and beside it the same protocol on training images."""
    return [
        Stage("paper", extent.reported, extent.images, clean_energies),
        normalizer_stage(measured.subject, "train", extent.train_images, "train_normalizer"),
        Stage("train_paper", "train", extent.train_images, clean_energies),
    ]


def paper(measured: Measured) -> Estimated:
    """The paper's protocol."""
    clean, also = measured.rows["paper"], {"log_normalizer": plain(measured.log_z)}
    found = bits_per_dim(clean["energy"], measured.dimension)
    return Estimated(clean["position"], found, len(found), also)


def dequantized(measured: Measured) -> Estimated:
    """Uniform dequantization: each image's figure is the mean over its draws of u."""
    rows = measured.rows["dequantized"]
    found = dequantized_bits_per_dim(rows["energy"].mean(dim=1), measured.dimension)
    return Estimated(rows["position"], found, rows["energy"].numel(), {"draws": rows["energy"].shape[1]})


def pilot_stages(measured: Measured, extent: Extent) -> list[Stage]:
    """The pilot: what chooses the bound's t0 and t1, on images that are not reported."""
    grid = measured.grid
    outer = [grid.edge(i) for i in grid.starts()], [grid.edge(i) for i in grid.stops()]
    whole, images = (0, grid.number), (extent.chooser, PILOT_IMAGES)
    return _inside_and_ends(measured, extent, ("pilot", "pilot_ends"), images, whole, *outer)


def bound_stages(measured: Measured, extent: Extent) -> list[Stage]:
    """The denoiser's errors between t0 and t1, what the bound has at its ends, and its certificate."""
    (t0, t1), (first, last) = measured.bound_range, measured.span
    images, names = (extent.reported, extent.subset), ("bound_strata", "ends")
    settings = {"span": (t0, t1), "number": last - first} | _mirrored(measured, extent)
    made = _inside_and_ends(measured, extent, names, images, measured.span, [t0], [t1])
    if measured.subject.quantized:  # a density's decoder has no largest value
        made.append(Stage("certificate", *images, certificate, settings))
    return made


def _mirrored(measured: Measured, extent: Extent) -> dict[str, bool | str]:
    """The mirror's entry in a stage's settings; none without it, as in rows of earlier versions."""
    own = extent.mirror and measured.subject.model.averaged() is not None
    return {"mirror": "orders" if own else True} if extent.mirror else {}


def _inside_and_ends(
    measured: Measured,
    extent: Extent,
    names: tuple[str, str],
    images: tuple[str, int],
    span: tuple[int, int],
    starts: list[float],
    stops: list[float],
) -> list[Stage]:
    mirror = _mirrored(measured, extent)
    inside = {"number": measured.grid.number, "span": span} | mirror
    return [
        Stage(names[0], *images, strata, inside, {"as_trained": False}),
        Stage(names[1], *images, ends, {"starts": starts, "stops": stops} | mirror),
    ]


def bound(measured: Measured) -> Estimated:
    """The variational bound, one unbiased estimate an image."""
    m, rows = measured, measured.rows
    inside, ending = rows["bound_strata"], rows["ends"]
    a, b = joined(inside, ending)
    diffusion = diffusion_energy(inside["space"][a], m.dimension, m.grid.width)
    terms = BoundTerms(ending["decoder"][b, 0], diffusion, ending["prior"][b, 0])
    position, (t0, t1), used = inside["position"][a], m.bound_range, m.span[1] - m.span[0]
    pilots = 0  # of what chose t0 and t1, if anything did
    if "pilot" in rows:
        pilots = rows["pilot"]["space"].numel() + rows["pilot_ends"]["decoder"].numel()
    parts = {name: plain(bits(m.mean(part, position), m.dimension)) for name, part in terms._asdict().items()}
    also: Figure = {"t0": t0, "t1": t1, "strata": used, "parts": parts}
    if m.subject.quantized:
        also["certificate"] = _certificate(m)
    else:
        parts["levels"] = plain(Estimate(m.zero_nats, 0.0))  # log₂ 256, of a density as of 256 levels
    found = m.zero_nats + bits(terms.total, m.dimension)
    return Estimated(position, found, len(a) * (used + 1) + pilots, also)


def _certificate(measured: Measured) -> Figure:
    """An upper limit on the bound of these very images, in bits/dim, without assuming a normal law."""
    m, rows = measured, measured.rows["certificate"]
    found = certify(BoundedRows(rows["decoder"], rows["space"], rows["prior"], m.dimension, *m.bound_range))
    return {
        "value": None if math.isinf(found.limit) else bits(found.limit, m.dimension),
        "estimate": bits(found.estimate, m.dimension),
        "confidence": found.confidence,
        "images": len(rows["decoder"]),
        "evaluations": rows["decoder"].numel() + rows["space"].numel(),
    }


def ode(measured: Measured) -> Estimated:
    """The probability-flow ODE of the dequantized images."""
    rows = measured.rows["ode"]
    return Estimated(rows["position"], measured.density_bits(rows["energy"]), int(rows["evaluations"].sum()))


def coded_stages(measured: Measured, extent: Extent) -> list[Stage]:
    """The subset's images, coded and decoded."""
    settings = {"span": measured.bound_range, "steps": STEPS}
    return [Stage("file", extent.reported, extent.subset, coded, settings)]


def in_the_file(measured: Measured) -> Estimated:
    """Bits of a file, without its list of images and its loan; 8 a number of images that did not return."""
    rows = measured.rows["file"]
    found, failed = bits(rows["nats"], measured.dimension), int((1.0 - rows["whole"]).sum())
    also = {"noise_levels": STEPS, "decoded": len(found) - failed, "failed": failed}
    return Estimated(rows["position"], found, 2 * (STEPS + 1) * len(found), also)


ESTIMATORS: dict[str, Estimator] = {
    "paper": Estimator("paper's protocol", "estimate, one evaluation", paper_stages, paper, energy=True),
    "dequantized": Estimator(
        "dequantized",
        "bound, if normalized",
        lambda _, e: [Stage("dequantized", e.reported, e.images, dequantized_energies, {"draws": e.draws})],
        dequantized,
        energy=True,
        discrete=True,
    ),
    "bound": Estimator("bound", "upper bound", bound_stages, bound),
    "ode": Estimator(
        "ODE",
        "ODE",
        lambda _, e: [Stage("ode", e.reported, e.ode_images, ode_energies, {"tolerance": e.ode_tolerance})],
        ode,
    ),
    "file": Estimator(
        "bits in the file", "coded and decoded", coded_stages, in_the_file, discrete=True, costly=True
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


def ready(names: Sequence[str], measured: Measured, extent: Extent) -> dict[str, Estimator]:
    """Those of the named estimators whose rows are there, in table order."""
    needs = {
        name: {*(stage.name for stage in e.stages(measured, extent)), *(["normalizer"] if e.energy else [])}
        for name, e in usable(names, measured).items()
    }
    return {name: ESTIMATORS[name] for name, stages in needs.items() if stages <= measured.rows.keys()}


def estimate_figure(estimated: Estimated, measured: Measured) -> Figure:
    """The report's entry: the mean, its error over photographs (a shared log Z's included), the cost."""
    found, shared = measured.mean(estimated.bits, estimated.position), estimated.shared
    total = found if shared is None else found + shared
    normalizing = 0 if shared is None else measured.rows["normalizer"]["energy"].numel()
    known = measured.photographs(estimated.position) is not None
    interval = Estimate(total.value, total.stderr, found.groups).interval()
    return {
        **plain(total),
        "interval": list(interval) if found.groups > 1 else None,
        "images": len(estimated.bits),
        "photographs": found.groups if known else None,
        "evaluations": estimated.evaluations + normalizing,
        **estimated.also,
    }


def label(name: str) -> str:
    """An estimate's name in tables; a report may hold one that is not known here."""
    return ESTIMATORS[name].label if name in ESTIMATORS else name


def limit_label(name: str) -> str:
    """The name of an estimate's certificate in tables."""
    return f"{label(name)}, at most (95 %)"


def kind(name: str) -> str:
    """An estimate's kind in table 2; a report may hold one that is not known here."""
    return ESTIMATORS[name].kind if name in ESTIMATORS else "estimate"
