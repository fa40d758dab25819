"""From rows to what evaluation.json holds: functions of what was measured, and of nothing else."""

import math
from dataclasses import asdict
from typing import Any

from dualscore.evaluation.yardsticks import CAUSAL, FULL_COVARIANCE, Yardstick
from dualscore.likelihood import bits, bits_per_dim, mean
from dualscore.likelihood.verdict import overall, verdict
from dualscore.measuring.chain_figures import mass_figures
from dualscore.measuring.checks import all_checks, image_figures, looked_at
from dualscore.measuring.estimators import Estimator, bound, usable
from dualscore.measuring.measured import Extent, Measured
from dualscore.measuring.row_figures import PerImage, component_weights, level_figures, plain, truth_figures
from dualscore.measuring.subject import joined
from dualscore.settings.config import ExperimentConfig, KnownDensity

DIFFERENCES = (("bound", "dequantized"), ("dequantized", "paper"))
"""Pairs of estimates that a reader wants to see image by image, though none is an identity."""


def ready(measured: Measured, config: ExperimentConfig, extent: Extent) -> dict[str, Estimator]:
    """The estimators that were asked for and whose rows are there, in the order of their table."""
    found = {}
    for name, estimator in usable(config.evaluate.estimators, measured).items():
        needs = [stage.name for stage in estimator.stages(measured, extent)]
        needs += ["normalizer"] if estimator.energy else []
        if all(need in measured.rows for need in needs):
            found[name] = estimator
    return found


def figures(measured: Measured, config: ExperimentConfig, extent: Extent) -> dict[str, Any]:
    """Everything that rows alone decide, as far as they are there: entries of the report."""
    m, rows = measured, measured.rows
    report: dict[str, Any] = {"bits_per_dim": {}}
    per_image, found = PerImage(m.photographs), ready(m, config, extent)
    if "normalizer" in rows:
        report["log_normalizer"] = m.log_z.value
    for name, estimator in found.items():
        estimated = estimator.estimate(m)
        per_image.add(name, estimated.position, estimated.bits, m.shared if estimator.energy else None)
        report["bits_per_dim"][name] = estimated.figure(m, estimator.energy)
    if "train_paper" in rows and "train_normalizer" in rows:
        report["train"] = _training(m)
    if "noise_levels" in rows:
        report["noise_levels"] = [
            asdict(level) for level in level_figures(rows["noise_levels"], m.levels, m.dimension)
        ]
    report["differences"] = {
        f"{one} − {other}": plain(per_image.difference(one, other))
        for one, other in DIFFERENCES
        if one in found and other in found
    }
    if "truth" in rows:
        _truth(m, config, per_image, report)
    if "rises" in rows:
        report["image_by_image"] = image_figures(m)
    if m.subject.is_energy and (found_mass := mass_figures(m)) is not None:
        report["normalization"] = found_mass
    _checks(m, report)
    return report


def beside(measured: Measured, found: dict[str, Yardstick]) -> dict[str, Any]:
    """The bound less each yardstick that has bits of its own of the same images, and how many these are."""
    if "bound_strata" not in measured.rows:
        return {}
    ours, differences = bound(measured), {}
    for other in (found[name] for name in (CAUSAL, FULL_COVARIANCE) if name in found):
        if other.positions is not None and other.bits_per_dim is not None:
            a, b = joined({"position": ours.position}, {"position": other.positions})
            if len(a) > 1:
                gap = measured.mean(ours.bits[a] - other.bits_per_dim[b], ours.position[a])
                differences[f"bound − {other.label}"] = {**plain(gap), "images": len(a)}
    return differences


def _training(measured: Measured) -> dict[str, Any]:
    """The paper's protocol on training images, beside."""
    clean, noisy = measured.rows["train_paper"], measured.rows["train_normalizer"]
    log_z = measured.normalizer("train_normalizer")
    images, groups = len(clean["energy"]), measured.of_training(clean["position"])
    found = mean(bits_per_dim(clean["energy"], measured.dimension), groups)
    return {
        **plain(found + bits(log_z, measured.dimension)),
        "images": images,
        "photographs": None if groups is None else found.groups,
        "evaluations": images + noisy["energy"].numel(),
        "log_normalizer": plain(log_z),
    }


def _truth(measured: Measured, config: ExperimentConfig, per_image: PerImage, report: dict[str, Any]) -> None:
    """The known density's own figure, and how far every estimate is above it."""
    m, rows = measured, measured.rows["truth"]
    true_bits, log_z = m.density_bits(rows["energy"]), m.log_z if "normalizer" in m.rows else None
    per_image.add(PerImage.TRUTH, rows["position"], true_bits)
    report["truth"] = truth_figures(true_bits, m.rows.get("noise_levels", {}), log_z, m.dimension)
    density = m.subject.density
    if "paper" in m.rows and density is not None and config.data.density is KnownDensity.mode_mixture:
        weights = density.log_weights.exp().cpu()
        report["truth"]["component_weights"] = component_weights(rows, m.rows["paper"], weights)
    for name, figure in report["bits_per_dim"].items():
        figure["above_truth"] = plain(per_image.difference(name, PerImage.TRUTH))


def _checks(measured: Measured, report: dict[str, Any]) -> None:
    checks = all_checks(measured)
    report["checks"] = [
        {
            "check": check.name,
            "where": check.where,
            "value": None if math.isnan(check.size) else check.size,
            "stderr": plain(check.gap)["stderr"] if not check.square else None,
            "unit": check.unit,
            "tolerance": check.tolerance,
            "word": check.word.value,
            "of_images": check.of_images,
        }
        for check in checks
    ]
    report["word"] = overall(checks).value if checks else "not checked"
    report["consistent"] = report["word"] == "consistent"
    report["verdict"] = verdict(checks, measured.dimension, looked_at(measured))
