"""Reads checkpoints: only tensors and plain values, whole or not at all; no code is executed."""

import errno
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dualscore.errors import CheckpointError, DamagedCheckpointError, did_you_mean
from dualscore.files.archives import DAMAGED, refuse_bombs
from dualscore.files.plain_text import one_line
from dualscore.runs.folder import Run, missing_run, older
from dualscore.shipped.boxed import BOXED

FORMAT = 2
"""Of what a checkpoint's weights mean; weights of another are refused, not misread."""
MODELS = (".ckpt", ".safetensors", ".pth.tar")
"""Endings of files that hold a model."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints: `dualscore` describes the run, `state_dict` holds the weights.

    A CheckpointError says that the file is missing, damaged, or not one of ours.
    """
    refuse_bombs(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:  # torch does not look at the checksums
                raise DamagedCheckpointError(f"{path}: damaged: {record} has another checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint; {_instead_of(path)}") from error
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno == errno.EINVAL:  # a place that no file has
            raise DamagedCheckpointError(f"{path}: damaged or not a checkpoint ({error})") from error
        raise CheckpointError(f"{path}: cannot be read ({error}); try again") from error
    except DAMAGED as error:
        raise DamagedCheckpointError(
            f"{path}: damaged or not a checkpoint ({one_line(error):.120})"
        ) from error
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(
            f"{path}: not a dualscore checkpoint: it asks for code to be executed"
        ) from error
    description = content.get("dualscore") if isinstance(content, dict) else None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a dualscore checkpoint of a format this version reads")
    return dict(content)


def _instead_of(path: Path) -> str:
    """What there is instead of a file that is not there: in its folder, or else among the runs."""
    in_run = path.parent.name == "checkpoints"
    beside = sorted(file.name for ending in MODELS for file in path.parent.glob(f"*{ending}"))
    guess = did_you_mean(path.name, beside)
    if guess or (in_run and beside):
        return f"{guess}there are: {', '.join(beside)}"
    if guess := did_you_mean(str(path), BOXED):
        return f"{guess}in the box: {', '.join(BOXED)}"
    return missing_run(path.parent.parent if in_run else path)


def newest_sound(
    run: Run, warn: Callable[[str], None], put_aside: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, with its content; None for a run without checkpoints.

    `put_aside` renames damaged ones, which one process of a group should do. A CheckpointError says that all
    are damaged, or that one cannot be read for another reason than damage.
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
    """The checkpoint to measure: the best, the best before it, or the last; `best.ckpt` if none is sound."""
    for path in (run.best, older(run.best, 1), *run.kept()):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            if path.exists() or path == run.best:
                warn(f"{error}; measuring the next best")
        else:
            return path
    return run.best
