"""Loads models from files: our checkpoints and the paper's released ones; no code is executed."""

import errno
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dualscore import architecture
from dualscore.archives import refuse_bombs, sha256
from dualscore.assemble import FORMAT, image_shape
from dualscore.errors import CheckpointError, ConfigError, DamagedCheckpointError
from dualscore.experiment import to_config
from dualscore.model import ImageModel
from dualscore.model_file import MODEL_FILE, is_model_file, read_model
from dualscore.origin import Origin
from dualscore.plain_text import printable
from dualscore.released import read_network
from dualscore.runs import Run, older

# What torch and Python raise at one or another flipped byte; NotImplementedError and RecursionError are
# kinds of RuntimeError, and KeyError and IndexError of LookupError.
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints: tensors and plain values only.

    Args:
        path: a `.ckpt` file written by training.

    Returns:
        Its contents; `dualscore` describes the run, `state_dict` holds the weights.

    Raises:
        CheckpointError: if the file is missing, damaged, or not one of ours.
    """
    refuse_bombs(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:  # torch does not look at the checksums
                raise DamagedCheckpointError(f"{path}: damaged: {record} has another checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint; train first with make train, or give CKPT=…"
        ) from error
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno == errno.EINVAL:  # a place that no file has
            raise DamagedCheckpointError(f"{path}: damaged or not a checkpoint ({error})") from error
        raise CheckpointError(f"{path}: cannot be read ({error}); try again") from error
    except _DAMAGED as error:
        raise DamagedCheckpointError(
            f"{path}: damaged or not a checkpoint ({' '.join(str(error).split()):.120})"
        ) from error
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(
            f"{path}: not a dualscore checkpoint: it asks for code to be executed"
        ) from error
    description = content.get("dualscore") if isinstance(content, dict) else None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a dualscore checkpoint of a format this version reads")
    return dict(content)


def newest_sound(
    run: Run, warn: Callable[[str], None], put_aside: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read.

    Args:
        run: the run.
        warn: told of each damaged one before it.
        put_aside: whether damaged ones are renamed, which one process of a group should do.

    Returns:
        Where it is and what it holds; None for a run without checkpoints.

    Raises:
        CheckpointError: if all are damaged, or one cannot be read for another reason than damage.
    """
    kept = run.kept()
    for path, before in zip(kept, [*kept[1:], None], strict=False):
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpointError as error:
            if before is None:
                raise
            warn(f"{error}; going on from {before.name}, the one before")
            if put_aside:  # or the next checkpoint would push it over the good one
                path.replace(path.with_suffix(".damaged"))
        except CheckpointError:
            if path.exists() or before is None:
                raise  # and not put aside by another process in the meantime
    return None


def best_sound(run: Run, warn: Callable[[str], None]) -> Path:
    """The checkpoint to measure: the best, or where that is lost the best before it, or the last.

    Args:
        run: the run.
        warn: told of those that are damaged or missing.

    Returns:
        Where it is; `best.ckpt`, if none can be read.
    """
    for path in (run.best, older(run.best, 1), *run.kept()):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            if path.exists() or path == run.best:
                warn(f"{error}; measuring the next best")
        else:
            return path
    return run.best


def is_released(path: Path) -> bool:
    """Whether a file has the released layout: its pickle names `args` beside `state_dict`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            content = archive.read(names[0]) if names else b""
    except (OSError, *_DAMAGED):
        return False
    return b"argparse" in content and b"network_kwargs" in content and b"state_dict" in content


def locate(path: str | Path) -> Path:
    """The file that a model is in: in a folder the model file, or a run's best checkpoint."""
    path = Path(path)
    if not path.is_dir():
        return path
    return path / MODEL_FILE if (path / MODEL_FILE).exists() else Run(path).best


def load(path: str | Path) -> ImageModel:
    """Load a model for use.

    Args:
        path: a folder that `save` wrote, or its `model.safetensors`; one of our checkpoints (`.ckpt`; the
            averaged weights where there are any), or a run's folder for its best one; or a checkpoint
            released with Guth et al. 2025 (`.pth.tar`), whose normalisation is not known until `normalize`
            has seen images.

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
    except (*_DAMAGED, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: weights and configuration do not belong to this version or to each other: {reason:.200}"
        ) from error


def _released(path: Path) -> ImageModel:
    found = read_network(path)
    name = printable(path.name)
    facts = {"converted from": f"{name}, in the format released with Guth et al. 2025, arXiv 2506.05310"}
    facts["SHA-256 of it"] = sha256(path)
    if found.step is not None:
        facts["step"] = f"{found.step:,}"
    origin = Origin(name.partition(".")[0] or name, architecture.of_released(found.network), facts)
    return ImageModel(found.model, provenance=f"released checkpoint {name}", origin=origin).eval()


def _assembled(content: dict[str, Any], path: Path) -> ImageModel:
    """The model in a checkpoint's content; what torch raises where its parts do not belong together."""
    config = to_config(content["dualscore"]["config"])
    state = content["state_dict"]
    averaged = "average.n_averaged" in state
    priors = _below("prior.", state)
    prior = architecture.prior(image_shape(config), priors)
    network = architecture.of_config(config, _below("average.module." if averaged else "model.", state))
    log_normalizer = float(state["log_normalizer"])
    known = log_normalizer == log_normalizer  # NaN where no validation measured it
    step, release = int(content["global_step"]), str(content["dualscore"]["release"])
    weights = "averaged" if averaged else "trained"
    facts = {
        "data set": release,
        "checkpoint": f"{printable(path.name)}, step {step:,}, {weights} weights",
        "SHA-256 of it": sha256(path),
    }
    return ImageModel(
        network,
        image_shape=image_shape(config),
        log_normalizer=log_normalizer if known else None,
        normalized_on=f"estimated by the validation of step {step:,}" if known else "",
        t_max=config.noise.t_max,
        noisy_entropy=float(prior.entropy(config.noise.t_max)),
        prior=prior,
        provenance=f"{config.name}, step {step}, {release}",
        origin=Origin(config.name, architecture.of_experiment(config), facts),
    ).eval()


def _below(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
