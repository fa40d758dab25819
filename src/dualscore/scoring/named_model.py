"""What a word of the command line names as a model to measure: ours, diffusers', or the user's own code."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dualscore.adapters.diffusers_model import is_diffusers, of_diffusers, read_diffusers
from dualscore.devices import to_measure
from dualscore.energy import ScoreModel
from dualscore.errors import DualscoreError, ModelError, did_you_mean
from dualscore.files.plain_text import one_line
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.model_files.loading import load

T_MIN = 1e-7
"""Smallest noise variance of a model of ours that does not say its own, in pixel²."""


@dataclass(frozen=True)
class NamedModel:
    """A model as `dualscore.measure` takes it."""

    name: str  # as it was given
    what: str  # for people
    denoiser: ScoreModel
    shape: tuple[int, int, int] | None  # (C, H, W); None where any size, or any image, goes
    t_range: tuple[float, float] | None = None  # None where the denoiser knows it
    prior: StationaryGaussian | None = None


def is_code(given: str) -> bool:
    """Whether a word names the user's own code, FILE.py:NAME."""
    file, colon, _ = given.rpartition(":")
    return bool(colon) and file.endswith(".py")


def find_model(given: str, label: int | None, device: torch.device) -> NamedModel:
    """Load a model by its word: FILE.py:NAME, a folder of diffusers, a run, an exported model, a checkpoint.

    DualscoreErrors are one line.
    """
    if is_code(given):
        _refuse_label(given, label)
        return _as_model(given, "your own code", _run(given, device), device)
    if Path(given).is_dir() and is_diffusers(Path(given)):
        try:
            read = read_diffusers(given)
            denoiser = of_diffusers(read.network.to(device), read.scheduler, labels=label)
        except ModelError as error:
            said = str(error).replace("say which with labels", "say which with --label")
            raise ModelError(said if said.startswith(given) else f"{given}: {said}") from error
        kinds = type(read.network).__name__, type(read.scheduler).__name__
        return NamedModel(given, "diffusers: " + ", ".join(kinds), denoiser, read.shape)
    _refuse_label(given, label)
    return _as_model(given, "", load(given), device)


def _as_model(given: str, what: str, found: Any, device: torch.device) -> NamedModel:  # noqa: ANN401
    """A named model of whatever was loaded."""
    if isinstance(found, ImageModel):
        found = to_measure(found, str(device))
        if (shape := found.image_shape) is not None and shape[0] not in (1, 3):
            raise ModelError(f"{given}: of vectors, not of images")
        ends = max(found.t_min, T_MIN), found.t_max
        model = found.score_model
        return NamedModel(given, what or found.provenance, model, shape, ends, found.prior)
    if isinstance(found, ScoreModel):
        return NamedModel(given, what, found.to(device).eval(), getattr(found, "image_shape", None))
    raise ModelError(
        f"{given}: gave a {type(found).__name__}; wanted is a denoiser of dualscore.denoisers or dualscore."
        "adapters, a model of dualscore.load, or a function that gives one"
    )


def _run(given: str, device: torch.device) -> Any:  # noqa: ANN401 - whatever the user's code makes
    """What NAME of FILE.py is, or gives where it is a function: of no argument, or of the device's name."""
    file, _, name = given.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"{file}: no such file")
    found = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # As if it were run: what lies beside it can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    _yours(path, lambda: found.loader.exec_module(module))  # type: ignore[union-attr]
    if (made := getattr(module, name, None)) is None:
        there = [n for n in vars(module) if not n.startswith("_")]
        raise ModelError(f"{file}: has no {name!r:.80}; {did_you_mean(name, there)}".rstrip("; "))
    if isinstance(made, ScoreModel | ImageModel) or not callable(made):
        return made
    needed = [
        p for p in inspect.signature(made).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if len(needed) > 1:
        raise ModelError(
            f"{given}: takes {len(needed)} arguments: wrap the function, as {name} = of_pixels({name}, "
            "t_range=…) of dualscore.denoisers, or name a function of no argument that gives the wrapped one"
        )
    return _yours(path, lambda: made(*[str(device)] * len(needed)))


def _yours(path: Path, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the user's code gives
    """Call the user's code: what it raises becomes a line that names its place."""
    try:
        return call()
    except DualscoreError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
        where = f", line {frames[-1].lineno}" if frames else ""
        raise ModelError(f"{path}{where}: {type(error).__name__}: {one_line(error):.200}") from error


def _refuse_label(given: str, label: int | None) -> None:
    if label is not None:
        raise ModelError(f"{given}: --label is for models of diffusers that are told a class")
