"""An evaluation from a checkpoint to evaluation.json."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from dualscore.assemble import build, known_density, load_statistics
from dualscore.checkpoints import read_checkpoint
from dualscore.config import ExperimentConfig
from dualscore.errors import CheckpointError, TrainingError
from dualscore.evaluation.gaussians import measure_gaussians
from dualscore.evaluation.measurement import Measurement
from dualscore.evaluation.report import print_report, write_report
from dualscore.evaluation.run import Session
from dualscore.evaluation.stages import Subject
from dualscore.experiment import to_plain
from dualscore.gaussian import StationaryGaussian
from dualscore.precision import allow_tf32
from dualscore.runs import check_architecture
from dualscore.terminal import quiet, shared_console


def is_complete(report: Path, checkpoint: Path) -> bool:
    """Whether an evaluation.json is there and tells of a finished evaluation of a checkpoint as it is now."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        return bool(content["complete"]) and content["checkpoint_sha256"] == _digest(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


DEFINITIONS = 2
"""Of the figures; rows that were measured by others are measured anew."""


def evaluate(config: ExperimentConfig, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Measure a checkpoint and write evaluation.json, figure by figure; interrupted, it goes on.

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
    allow_tf32(False)
    console = shared_console()
    content = read_checkpoint(checkpoint)
    check_architecture(checkpoint, content["dualscore"]["config"], to_plain(config))
    module, datamodule = build(config)
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint}: the weights do not fit the experiment: {reason:.200}"
        ) from error
    fabric = _fabric(config)
    density = known_density(config)
    double = config.trainer.precision == "64-true"
    parts = [module.evaluated, module.prior, *([density] if density is not None else [])]
    for part in parts:
        # Figures are taken in full precision, however the model was trained.
        (part.double() if double else part.float()).to(fabric.device).requires_grad_(False).eval()
    subject = Subject(
        module.evaluated,
        module.prior,
        density,
        quantized=config.data.quantized,
        dequantize=config.data.dequantize,
        t_range=module.t_range,
        seed=config.seed,
    )
    digest = _digest(checkpoint)
    identity = {
        "definitions": DEFINITIONS,
        "checkpoint": digest,
        "dataset": datamodule.identity,
        "seed": config.seed,
        "double": double,
        "dequantize": config.data.dequantize,
        "channels": config.data.channels,
    }
    session = Session(
        fabric,
        subject,
        datamodule,
        config.evaluate,
        output.parent / "evaluation",
        identity,
        config.data.workers,
        console,
    )
    console.print(f"evaluating {checkpoint} …", highlight=False, soft_wrap=True)
    report: dict[str, Any] = {
        "experiment": config.name,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": digest,
        "step": content["global_step"],
        "weights": "averaged" if config.optim.ema_steps else "trained",
        "complete": False,
        "dataset": {
            "name": datamodule.dataset,
            "release": datamodule.release,
            "path": str(datamodule.path) if datamodule.path else None,
            "split": "val",
            "colour": "gray" if config.data.channels == 1 else "colour",
        },
        "image_shape": list(module.image_shape),
        "dimension": module.dimension,
        "bits_per_dim": {},
    }
    Measurement(config, session, report, output).all()
    if fabric.is_global_zero:
        stationary = _stationary(config)
        count = min(config.evaluate.images, datamodule.counts["val"])
        report["gaussian"] = measure_gaussians(datamodule, stationary, config.data.channels, count)
        report["complete"] = True
        write_report(report, output)
        print_report(report, console)
        console.print(f"written to {output}", highlight=False, soft_wrap=True)
    # A process that left while the first one still measures would be taken for a crash.
    fabric.barrier()
    return report


def _stationary(config: ExperimentConfig) -> StationaryGaussian:
    statistics = load_statistics(config)
    return StationaryGaussian(statistics.mean, statistics.spectrum).double()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fabric(config: ExperimentConfig) -> Fabric:
    options = config.trainer
    try:
        fabric = Fabric(
            accelerator="cuda" if options.accelerator == "gpu" else options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy="ddp" if options.devices * options.nodes > 1 else "auto",
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"trainer.devices={options.devices}, trainer.accelerator={options.accelerator}: {reason:.200}"
        ) from error
    fabric.launch()
    return fabric
