"""The estimates of a likelihood: their table, and how each comes to bits/dim of each image."""

from dualscore.errors import ConfigError
from dualscore.evaluation import figures, plan
from dualscore.evaluation.bound import measure_bound
from dualscore.evaluation.estimate import Estimated, Estimator
from dualscore.evaluation.measurement import Measurement
from dualscore.evaluation.stages import dequantized_energies, ode_energies
from dualscore.likelihood import bits, bits_per_dim, dequantized_bits_per_dim
from dualscore.settings.config import CHECKS, ExperimentConfig


def paper(measurement: Measurement) -> Estimated:
    """The paper's protocol."""
    m = measurement
    clean = m.rows["paper"] = m.session.run(m.stages["paper"])
    assert m.log_z is not None
    also = {"log_normalizer": figures.plain(m.log_z)}
    return Estimated(
        clean["position"], bits_per_dim(clean["energy"], m.dimension), len(clean["energy"]), also
    )


def dequantized(measurement: Measurement) -> Estimated:
    """Uniform dequantization: each image's figure is the mean over its draws of u."""
    m = measurement
    stage = dequantized_energies(m.options.images, m.options.draws)
    rows = m.rows["dequantized"] = m.session.run(stage)
    found = dequantized_bits_per_dim(rows["energy"].mean(dim=1), m.dimension)
    return Estimated(rows["position"], found, rows["energy"].numel(), {"draws": rows["energy"].shape[1]})


def bound(measurement: Measurement) -> Estimated:
    """The certified bound; what the checks measure serves it too, where they are of the images themselves."""
    m = measurement
    shared = None if m.config.data.dequantize else m.strata
    found = measure_bound(m.session.run, m.grid, plan.subset(m.options, m.counts), m.dimension, shared)
    also = figures.bound_parts(found, m.dimension)
    return Estimated(found.position, bits(found.terms.total, m.dimension), found.evaluations, also)


def ode(measurement: Measurement) -> Estimated:
    """The probability-flow ODE of the dequantized images."""
    m = measurement
    rows = m.session.run(ode_energies(m.options.ode_images, m.options.ode_tolerance))
    return Estimated(rows["position"], m.density_bits(rows["energy"]), int(rows["evaluations"].sum()))


ESTIMATORS: dict[str, Estimator] = {
    "paper": Estimator("paper's protocol", "estimate, one evaluation", paper, energy=True),
    "dequantized": Estimator("dequantized", "bound, if normalized", dequantized, energy=True, discrete=True),
    "bound": Estimator("certified bound", "certified bound", bound, discrete=True),
    "ode": Estimator("ODE", "ODE", ode),
}
"""In the order of the report, where those of an energy come first; docs/extending.md adds one."""


def check_estimators(config: ExperimentConfig) -> None:
    """Refuse estimates that are not known, or that the images have none of.

    Args:
        config: the experiment.

    Raises:
        ConfigError: naming them.
    """
    wanted, known = config.evaluate.estimators, [*ESTIMATORS, CHECKS]
    if unknown := [name for name in wanted if name not in known]:
        listed = ", ".join(map(repr, unknown))
        raise ConfigError(f"evaluate.estimators: must be some of {', '.join(known)}, not {listed:.80}")
    discrete = [name for name in wanted if name in ESTIMATORS and ESTIMATORS[name].discrete]
    if discrete and not config.data.quantized:
        raise ConfigError(
            f"evaluate.estimators: {' and '.join(discrete)} cannot be had with data.quantized=false: "
            "8-bit images are needed"
        )


def label(name: str) -> str:
    """What tables call an estimate; a report may hold one that is not known here."""
    return ESTIMATORS[name].label if name in ESTIMATORS else name


def kind(name: str) -> str:
    """What sort of figure table 2 says an estimate is; a report may hold one that is not known here."""
    return ESTIMATORS[name].kind if name in ESTIMATORS else "estimate"
