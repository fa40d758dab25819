"""An evaluation from a checkpoint to evaluation.json."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualscore.assemble import load_statistics
from dualscore.evaluation.estimators import ESTIMATORS, check_estimators, label
from dualscore.evaluation.gaussians import measure_gaussians
from dualscore.evaluation.measurement import Measurement
from dualscore.evaluation.opening import open_checkpoint
from dualscore.evaluation.report import print_report, write_report
from dualscore.files.archives import sha256
from dualscore.gaussian import StationaryGaussian
from dualscore.settings.config import CHECKS, ExperimentConfig
from dualscore.terminal import quiet, shared_console


def is_complete(report: Path, checkpoint: Path) -> bool:
    """Whether an evaluation.json is there and tells of a finished evaluation of a checkpoint as it is now."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        return bool(content["complete"]) and content["checkpoint_sha256"] == sha256(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def evaluate(config: ExperimentConfig, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Measure a checkpoint and write evaluation.json, figure by figure; interrupted, it goes on.

    A finished report of the same checkpoint stays until the new one is finished, and estimates that only it
    has are made too: of what was measured they cost nothing.

    Args:
        config: the experiment; its architecture must be the checkpoint's.
        checkpoint: the file to measure.
        output: where the report goes; the images' own figures go into the folder `evaluation` beside it.

    Returns:
        The report.

    Raises:
        DualscoreError: one line for people; what was measured before stays.
    """
    quiet()
    check_estimators(config)
    console = shared_console()
    finished = is_complete(output, checkpoint)
    if finished:
        config = _with_earlier(config, output)
    opened = open_checkpoint(config, checkpoint, output.parent / "evaluation", console)
    session, datamodule = opened.session, opened.session.datamodule
    fabric = session.fabric
    console.print(f"evaluating {checkpoint} …", soft_wrap=True)
    report: dict[str, Any] = {
        "experiment": config.name,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": opened.digest,
        "step": opened.step,
        "weights": "averaged" if config.optim.ema_steps else "trained",
        "complete": False,
        "dataset": {
            "name": datamodule.dataset,
            "release": datamodule.release,
            "path": str(datamodule.path) if datamodule.path else None,
            "split": "val",
            "colour": "gray" if config.data.channels == 1 else "colour",
        },
        "image_shape": list(opened.image_shape),
        "dimension": math.prod(opened.image_shape),
        "bits_per_dim": {},
    }
    wanted = {name: ESTIMATORS[name] for name in ESTIMATORS if name in config.evaluate.estimators}
    Measurement(config, session, wanted, report, None if finished else output).all()
    if fabric.is_global_zero:
        stationary = _stationary(config)
        count = min(config.evaluate.images, datamodule.counts["val"])
        report["gaussian"] = measure_gaussians(datamodule, stationary, config.data.channels, count)
        report["estimators"] = list(config.evaluate.estimators)
        report["complete"] = True
        write_report(report, output)
        print_report(report, label, console)
        console.print(f"written to {output}", soft_wrap=True)
    # A process that left while the first one still measures would be taken for a crash.
    fabric.barrier()
    return report


def _with_earlier(config: ExperimentConfig, output: Path) -> ExperimentConfig:
    """The experiment with the estimators whose figures a finished report has."""
    report = json.loads(output.read_text(encoding="utf-8"))
    wanted = config.evaluate.estimators
    earlier = [e for e in (*ESTIMATORS, CHECKS) if e in report.get("estimators", []) and e not in wanted]
    return replace(config, evaluate=replace(config.evaluate, estimators=[*wanted, *earlier]))


def _stationary(config: ExperimentConfig) -> StationaryGaussian:
    statistics = load_statistics(config)
    return StationaryGaussian(statistics.mean, statistics.spectrum).double()
