"""Writes models that need neither their run nor their data, with what is known of them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualscore.errors import CheckpointError
from dualscore.model import ImageModel
from dualscore.model_files.exported import is_model_file, write_model
from dualscore.model_files.loading import load, locate


def save(model: ImageModel | str | Path, folder: str | Path, licence: str = "") -> Path:
    """Write a model that anyone can load: weights, log Z, where it comes from, how it was measured.

    Args:
        model: a run's folder or a checkpoint, whose evaluation goes into the file where there is a finished
            one; or a model that `load` gave, as it is now.
        folder: gets `model.safetensors` and `README.md`; a model in it is replaced.
        licence: the terms under which the weights may be used, one line; empty keeps what the model says.

    Returns:
        The file with the weights.

    Raises:
        CheckpointError: if the model cannot be read or written, or the folder holds something else.
    """
    if not isinstance(model, ImageModel):
        path = locate(model)
        model = load(path)
        if not is_model_file(path):
            _add_evaluation(model, path)
    if licence and model.origin is not None:
        model.origin = replace(model.origin, licence=licence)
    return write_model(model, Path(folder))


def describe(model: ImageModel, path: Path) -> str:
    """Describe the evaluation that would be saved with a model."""
    if not is_model_file(path):
        _add_evaluation(model, path)
    assert model.origin is not None
    energies = model.origin.energies
    found = "goes in" if model.origin.evaluation is not None else "none of this checkpoint was found"
    return found if energies is None else f"{found}; percentiles among {len(energies):,} images"


def _add_evaluation(model: ImageModel, checkpoint: Path) -> None:
    """Give a model what an evaluation of its checkpoint found, if there is one."""
    from dualscore.evaluation import is_complete  # brings Lightning, which using a model does not need
    from dualscore.scoring.score_images import find_reference

    assert model.origin is not None
    reference = find_reference(checkpoint)
    reports = [root / "evaluation.json" for root in (checkpoint.parent.parent, checkpoint.parent)]
    found = next((path for path in reports if is_complete(path, checkpoint)), None)
    evaluation = None if found is None else without_paths(json.loads(found.read_text(encoding="utf-8")))
    model.origin = replace(
        model.origin,
        evaluation=evaluation,
        energies=None if reference is None else reference.energies.double().cpu().sort().values,
    )
    if evaluation is not None and model.log_normalizer is not None:
        _add_error(model, evaluation, found)


def _add_error(model: ImageModel, evaluation: dict[str, Any], report: Path | None) -> None:
    """The error of log Z: a validation in training keeps the value alone, an evaluation estimates both."""
    try:
        measured = evaluation["bits_per_dim"]["paper"]["log_normalizer"]
        value, stderr = float(measured["value"]), float(measured["stderr"])
    except (KeyError, TypeError, ValueError):
        return  # measured without the paper's protocol
    if not (math.isfinite(value) and stderr >= 0.0):
        raise CheckpointError(f"{report}: log Z is {value} ± {stderr}; evaluate again")
    model.log_normalizer_stderr = stderr
    model.normalized_on += f"; by the evaluation {value:.3f}, whose error this is"


def without_paths(report: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without its local paths."""
    kept = {key: value for key, value in report.items() if key != "checkpoint"}
    if isinstance(kept.get("dataset"), dict):
        kept["dataset"] = {key: value for key, value in kept["dataset"].items() if key != "path"}
    return kept
