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

from dualscore.archives import refuse_bombs
from dualscore.assemble import FORMAT, blank_statistics, build_score_model, image_shape
from dualscore.config import ExperimentConfig
from dualscore.errors import CheckpointError, ConfigError, DamagedCheckpointError
from dualscore.experiment import to_config
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.released import load_released
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


def _is_released(path: Path) -> bool:
    """Whether a file has the released layout: its pickle names `args` beside `state_dict`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            content = archive.read(names[0]) if names else b""
    except (OSError, *_DAMAGED):
        return False
    return b"argparse" in content and b"network_kwargs" in content and b"state_dict" in content


def _check_sizes(config: ExperimentConfig, state: dict[str, torch.Tensor]) -> None:
    """Refuse a configuration far larger than the weights beside it, before anything of its size is made."""
    stored = tuple(state["prior.eigenvalues"].shape)
    if stored != image_shape(config):
        raise ValueError(f"weights for images of {stored}, configured are {image_shape(config)}")
    largest = max(side for tensor in state.values() for side in (1, *tensor.shape))
    if config.network.width > largest or max(config.network.scales, config.network.layers) > len(state):
        raise ValueError("the network configured is larger than the weights")


def locate(path: str | Path) -> Path:
    """The file that a model is in: of a run's folder the best checkpoint; any other path is itself."""
    path = Path(path)
    return Run(path).best if path.is_dir() else path


def load(path: str | Path) -> ImageModel:
    """Load a model for use.

    Args:
        path: one of our checkpoints (`.ckpt`; the averaged weights where there are any), a run's folder
            for its best one, or a checkpoint released with Guth et al. 2025 (`.pth.tar`), whose
            normalisation is not known until `normalize` has seen images.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged or of another format.
    """
    path = locate(path)
    refuse_bombs(path)
    if _is_released(path):
        return ImageModel(load_released(path), provenance=f"released checkpoint {path.name}").eval()
    content = read_checkpoint(path)
    try:
        config = to_config(content["dualscore"]["config"])
        state = content["state_dict"]
        prefix = "average.module." if "average.n_averaged" in state else "model."
        _check_sizes(config, state)
        blank = blank_statistics(image_shape(config))
        model = build_score_model(config, blank)
        prior = StationaryGaussian(blank.mean, blank.spectrum)
        prior.load_state_dict(
            {k.removeprefix("prior."): v for k, v in state.items() if k.startswith("prior.")}
        )
        noisy_entropy = float(prior.entropy(config.noise.t_max))
        log_normalizer = float(state["log_normalizer"])
        step, release = int(content["global_step"]), content["dualscore"]["release"]
        model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    except (*_DAMAGED, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: weights and configuration do not belong to this version or to each other: {reason:.200}"
        ) from error
    wrapped = ImageModel(
        model.requires_grad_(False),
        image_shape=image_shape(config),
        log_normalizer=None if log_normalizer != log_normalizer else log_normalizer,
        t_max=config.noise.t_max,
        noisy_entropy=noisy_entropy,
        prior=prior,
        provenance=f"{config.name}, step {step}, {release}",
    )
    return wrapped.eval()
