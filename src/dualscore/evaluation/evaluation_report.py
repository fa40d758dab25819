"""From rows to evaluation.json: what it holds are functions of what was measured, and of nothing else."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualscore.evaluation.session import Session
from dualscore.evaluation.yardsticks import CAUSAL, FULL_COVARIANCE, Yardstick
from dualscore.files.aside import sha256, write_changed
from dualscore.files.typed_json import read_json
from dualscore.likelihood import bits, bits_per_dim, mean
from dualscore.measuring.checks import all_checks, image_figures, looked_at, mass_figures
from dualscore.measuring.estimators import bound, estimate_figure, ready
from dualscore.measuring.measured import Extent, Measured
from dualscore.measuring.row_figures import (
    Estimated,
    Figure,
    component_weights,
    difference,
    energy_errors,
    level_figures,
    plain,
)
from dualscore.measuring.verdict import overall, verdict
from dualscore.settings.config import ExperimentConfig, KnownDensity

DIFFERENCES = (("bound", "dequantized"), ("dequantized", "paper"))
"""Pairs of estimates that a reader wants to see image by image, though none is an identity."""


def is_complete(report: Path, checkpoint: Path) -> bool:
    """Whether evaluation.json exists and is a finished evaluation of exactly this checkpoint."""
    found = read_json(report)
    known = bool(found.get("complete")) and checkpoint.is_file()
    return known and found.get("checkpoint_sha256") == sha256(checkpoint)


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write evaluation.json, whole or not at all."""
    write_changed(path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def opening(config: ExperimentConfig, checkpoint: Path, session: Session) -> dict[str, Any]:
    """The report's head: the checkpoint and the images."""
    data = session.datamodule
    return {
        "experiment": config.name,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": session.digest,
        "step": session.step,
        "weights": "averaged" if config.optim.ema_steps else "trained",
        "complete": False,
        "dataset": {
            "name": data.dataset,
            "release": data.release,
            "path": str(data.path) if data.path else None,
            "split": data.reported,
            "chosen_on": "val",
            "colour": "gray" if config.data.channels == 1 else "colour",
            "mean_free": config.data.mean_free,
        },
        "image_shape": list(session.image_shape),
        "dimension": math.prod(session.image_shape),
    }


def figures(measured: Measured, config: ExperimentConfig, extent: Extent) -> dict[str, Any]:
    """Everything that rows alone decide, as far as they are there: entries of the report."""
    m, rows = measured, measured.rows
    estimators = ready(config.evaluate.estimators, m, extent)
    found = {name: estimator.found(m) for name, estimator in estimators.items()}
    report: dict[str, Any] = {"bits_per_dim": {name: estimate_figure(e, m) for name, e in found.items()}}
    if "normalizer" in rows:
        report["log_normalizer"] = m.log_z.value
    if "train_paper" in rows and "train_normalizer" in rows:
        report["train"] = _training(m)
    if "noise_levels" in rows:
        levels = level_figures(rows["noise_levels"], m.levels, m.dimension)
        report["noise_levels"] = [asdict(level) for level in levels]
    report["differences"] = {
        f"{one} − {other}": plain(difference(found[one], found[other], m.photographs)[0])
        for one, other in DIFFERENCES
        if one in found and other in found
    }
    if "truth" in rows:
        truth = Estimated(rows["truth"]["position"], m.density_bits(rows["truth"]["energy"]))
        report["truth"] = _truth(m, truth, config.data.density is KnownDensity.mode_mixture)
        for name, estimated in found.items():
            gap, _ = difference(estimated, truth, m.photographs)
            report["bits_per_dim"][name]["above_truth"] = plain(gap)
    if "rises" in rows:
        report["image_by_image"] = image_figures(m)
    if m.subject.is_energy and (mass := mass_figures(m)) is not None:
        report["normalization"] = mass
    return report | _checks(m)


def beside(measured: Measured, found: dict[str, Yardstick]) -> dict[str, Any]:
    """The bound less each yardstick that has bits of its own of the same images, and how many these are."""
    differences = {}
    for other in (found[name] for name in (CAUSAL, FULL_COVARIANCE) if name in found):
        if "bound_strata" in measured.rows and other.found is not None:
            gap, images = difference(bound(measured), other.found, measured.photographs)
            differences[f"bound − {other.label}"] = {**plain(gap), "images": images}
    return differences


def _training(measured: Measured) -> Figure:
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


def _truth(measured: Measured, truth: Estimated, modes: bool) -> Figure:
    """The known density's own figure; how far energies, and a mixture's weights, are from the true ones."""
    m, levels, density = measured, measured.rows.get("noise_levels", {}), measured.subject.density
    figure: Figure = {**plain(mean(truth.bits)), "images": len(truth.bits)}
    if "normalizer" in m.rows and "energy" in levels and "truth" in levels:
        figure |= energy_errors(levels, m.log_z, m.dimension)
    if "paper" in m.rows and density is not None and modes:
        weights = density.log_weights.exp().cpu()
        figure["component_weights"] = component_weights(m.rows["truth"], m.rows["paper"], weights)
    return figure


def _checks(measured: Measured) -> dict[str, Any]:
    """The checks, one word for all, and one line."""
    checks = all_checks(measured)
    word = overall(checks).value if checks else "not checked"
    return {
        "checks": [
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
        ],
        "word": word,
        "consistent": word == "consistent",
        "verdict": verdict(checks, measured.dimension, looked_at(measured)),
    }
