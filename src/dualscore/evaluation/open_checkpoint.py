"""Opens a checkpoint together with the images that it is to be measured on."""

from dataclasses import dataclass
from pathlib import Path

from lightning.fabric import Fabric
from rich.console import Console

from dualscore.assemble import build, known_density
from dualscore.devices import allow_tf32
from dualscore.errors import CheckpointError, TrainingError
from dualscore.evaluation.session import Session
from dualscore.files.aside import sha256
from dualscore.measuring.subject import Subject
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import check_architecture
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import to_plain

DEFINITIONS = 2  # version of the figures' definitions; rows of other versions are measured anew


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to be measured."""

    session: Session
    digest: str  # SHA-256 of the checkpoint
    step: int
    image_shape: tuple[int, int, int]  # (C, H, W) of the images as the model sees them


def open_checkpoint(config: ExperimentConfig, checkpoint: Path, folder: Path, console: Console) -> Opened:
    """Load a checkpoint's weights for measuring, averaged ones where there are any, in full precision.

    Rows of the images are kept in `folder`. A DualscoreError is one line for people.
    """
    allow_tf32(False)
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
    digest = sha256(checkpoint)
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
        fabric, subject, datamodule, config.evaluate, folder, identity, config.data.workers, console
    )
    return Opened(session, digest, int(content["global_step"]), module.image_shape)


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
