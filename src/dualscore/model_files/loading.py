"""Loads models from files: our checkpoints and the paper's released ones; no code is executed."""

import math
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dualscore.assemble import image_shape
from dualscore.errors import CheckpointError, ConfigError, DualscoreError
from dualscore.files.archives import DAMAGED, refuse_bombs
from dualscore.files.aside import sha256
from dualscore.files.plain_text import one_line, printable
from dualscore.files.typed_json import TypedJson, parse_json
from dualscore.likelihood.normalizer import MeasuredMass, moved
from dualscore.model import ImageModel, Origin
from dualscore.model_files import architecture
from dualscore.model_files.architecture import below
from dualscore.model_files.exported import MODEL_FILE, is_model_file, read_mass, read_model
from dualscore.model_files.released import read_network
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run
from dualscore.settings.experiment import to_config
from dualscore.shipped.boxed import boxed


def is_released(path: Path) -> bool:
    """Whether a file has the released layout: its pickle names `args` beside `state_dict`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            content = archive.read(names[0]) if names else b""
    except (OSError, *DAMAGED):
        return False
    return all(word in content for word in (b"argparse", b"network_kwargs", b"state_dict"))


def holds_model(folder: Path) -> bool:
    """Whether a folder has a model file in it, or is that of a run with a checkpoint."""
    return (folder / MODEL_FILE).exists() or Run(folder).best.exists()


def locate(path: str | Path) -> Path:
    """The file that a model is in: in a folder the model file, or a run's best checkpoint."""
    named, path = boxed(path), Path(path)
    if named is not None and not holds_model(path):  # a folder of one's own photographs may have the name too
        path = named
    if not path.is_dir():
        return path
    return path / MODEL_FILE if (path / MODEL_FILE).exists() else Run(path).best


def load(path: str | Path) -> ImageModel:
    """Load a model for use.

    Args:
        path: `photographs` or `photographs_gray`, the models in the box; a folder that `save` wrote, or its
            `model.safetensors`; one of our checkpoints (`.ckpt`; the averaged weights where there are any),
            or a run's folder for its best one; or a checkpoint released with Guth et al. 2025 (`.pth.tar`),
            whose normalization is not known until `normalize` has seen images.

    Returns:
        The model, in evaluation mode, on the CPU, in the precision of its weights.

    Raises:
        CheckpointError: if the file is missing, damaged or of another format.
    """
    path = locate(path)
    if is_model_file(path):
        return read_model(path)
    refuse_bombs(path)
    if is_released(path):
        return _released(path)
    content = read_checkpoint(path)
    try:
        return _assembled(content, path)
    except (*DAMAGED, ConfigError) as error:
        raise CheckpointError(
            f"{path}: weights and configuration do not belong to this version or to each other: "
            f"{one_line(error):.200}"
        ) from error


def _released(path: Path) -> ImageModel:
    found = read_network(path)
    name = printable(path.name)
    facts = {
        "converted from": f"{name}, in the format released with Guth et al. 2025, arXiv 2506.05310",
        "SHA-256 of it": sha256(path),
    }
    if found.step is not None:
        facts["step, as that file says"] = f"{found.step:,}"
    origin = Origin(name.partition(".")[0] or name, architecture.of_released(found.network), facts)
    return ImageModel(found.model, provenance=f"released checkpoint {name}", origin=origin).eval()


def _assembled(content: dict[str, Any], path: Path) -> ImageModel:
    """The model in a checkpoint's content; what torch raises where its parts do not belong together."""
    config = to_config(content["dualscore"]["config"])
    state, shape, noise = content["state_dict"], image_shape(config), config.noise
    averaged = "average.n_averaged" in state
    prior = architecture.prior(shape, below("prior.", state))
    network = architecture.of_config(config, below("average.module." if averaged else "model.", state))
    log_normalizer = float(state["log_normalizer"])
    known = not math.isnan(log_normalizer)  # until a validation measures it
    step, release, digest = int(content["global_step"]), str(content["dualscore"]["release"]), sha256(path)
    weights = "averaged" if averaged else "trained"
    facts = {
        "data set": release,
        "training": f"{step * config.data.batch_size:,} images in batches of {config.data.batch_size:,}, "
        f"noise variances {noise.t_min:g} to {noise.t_max:g} pixel²",
        "checkpoint": f"{printable(path.name)}, step {step:,}, {weights} weights",
        "SHA-256 of it": digest,
    }
    return ImageModel(
        network,
        image_shape=shape,
        log_normalizer=log_normalizer if known else None,
        normalized_on=f"estimated by the validation of step {step:,}" if known else "",
        t_max=noise.t_max,
        t_min=noise.t_min,
        noisy_entropy=float(prior.entropy(noise.t_max)),
        prior=prior,
        provenance=f"{config.name}, step {step}, {release}",
        origin=Origin(config.name, architecture.of_experiment(config), facts),
        mass=_mass(path, digest, log_normalizer, math.prod(shape)) if known else None,
    ).eval()


def evaluation_of(checkpoint: Path, digest: str) -> dict[str, Any] | None:
    """The finished evaluation, in its run's folder or beside it, of the checkpoint with this SHA-256."""
    for folder in (checkpoint.parent.parent, checkpoint.parent):
        with suppress(OSError, ValueError, KeyError, TypeError):
            report = parse_json((folder / "evaluation.json").read_text(encoding="utf-8"))
            if report["complete"] and report["checkpoint_sha256"] == digest:
                return dict(report)
    return None


def _mass(checkpoint: Path, digest: str, log_normalizer: float, dimension: int) -> MeasuredMass | None:
    """The mass that a checkpoint's evaluation measured, moved to the checkpoint's own log Z."""
    report = evaluation_of(checkpoint, digest)
    # None of it in an evaluation of a denoiser, without chains, or by another version.
    with suppress(ValueError, KeyError, TypeError, DualscoreError):
        found = (report or {})["normalization"]
        mass = read_mass(TypedJson(found["mass"], "evaluation.json"))
        return moved(mass, float(found["value"]) - log_normalizer, dimension)
    return None
