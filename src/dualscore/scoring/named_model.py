"""What a word of the command line names as a model to measure: ours, diffusers', or the user's own code."""

import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dualscore.adapters.diffusers_model import is_diffusers, of_diffusers, read_diffusers
from dualscore.devices import to_measure
from dualscore.energy import ScoreModel
from dualscore.errors import DualscoreError, ModelError, did_you_mean
from dualscore.files.aside import sha256
from dualscore.files.plain_text import one_line
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate

R = TypeVar("R")
WANTED = (
    "wanted is a denoiser, as of_pixels(function, t_range=…) of dualscore.denoisers, one of dualscore."
    "adapters, a model of dualscore.load, or a function of no argument that gives one"
)
T_MIN = 1e-7
"""Smallest noise variance of a model of ours that does not say its own, in pixel²."""


@dataclass(frozen=True)
class NamedModel:
    """A model as `dualscore.measure` takes it."""

    name: str  # as it was given
    what: str  # for people
    denoiser: ScoreModel
    files: Sequence[Path]  # that it came from
    label: int | None = None  # that it is told
    channels: int = 3
    size: tuple[int, int] | None = None  # (H, W); None where any goes
    t_range: tuple[float, float] | None = None  # None where the denoiser knows it
    prior: StationaryGaussian | None = None

    @property
    def digest(self) -> str:
        """What tells it from others of its name: its files, read whole, and its label."""
        return f"{hashlib.sha256(''.join(map(sha256, self.files)).encode()).hexdigest()} {self.label}"


def is_code(given: str) -> bool:
    """Whether a word names the user's own code, FILE.py:NAME."""
    file, colon, _ = given.rpartition(":")
    return bool(colon) and file.endswith(".py")


def find_models(given: Sequence[str], label: int | None, device: torch.device) -> list[NamedModel]:
    """Load models by their words: FILE.py:NAME, a folder of diffusers, or what `dualscore.load` takes.

    The label goes to those that are told a class. DualscoreErrors are one line.
    """
    found = [_find(word, label, device) for word in given]
    if label is not None and not any(takes for _, takes in found):
        raise ModelError("--label is for models of diffusers that are told a class; none of these is")
    return [model for model, _ in found]


def _find(given: str, label: int | None, device: torch.device) -> tuple[NamedModel, bool]:
    """A model, and whether it is told a class."""
    path = Path(given)
    if is_code(given):
        file = Path(given.rpartition(":")[0])
        made = _run(given, device)
        return _as_model(given, "your own code", made, device, file), False
    if path.is_dir() and is_diffusers(path):
        try:
            read = read_diffusers(path)
            told = label if read.classes else None
            denoiser = of_diffusers(read.network.to(device), read.scheduler, labels=told)
        except ModelError as error:
            said = str(error).replace("say which with labels", "say which with --label")
            named = said.startswith((f"{given}:", f"{given}/"))
            raise ModelError(said if named else f"{given}: {said}") from error
        kinds = f"diffusers: {type(read.network).__name__}, {type(read.scheduler).__name__}"
        files = sorted(file for file in path.rglob("*") if file.is_file())
        model = NamedModel(given, kinds, denoiser, files, told, read.channels, read.size)
        return model, bool(read.classes)
    return _as_model(given, "", load(given), device, locate(given)), False


def _as_model(given: str, what: str, found: Any, device: torch.device, file: Path) -> NamedModel:  # noqa: ANN401
    """A named model of whatever was loaded."""
    if isinstance(found, ImageModel):
        found, shape = to_measure(found, str(device)), found.image_shape
        ends, model = (max(found.t_min, T_MIN), found.t_max), found.score_model
        what = what or found.provenance
        named = NamedModel(given, what, model, [file], t_range=ends, prior=found.prior)
    elif isinstance(found, ScoreModel):
        named = NamedModel(given, what, found.to(device).eval(), [file])
        shape = getattr(found, "image_shape", None)
    else:
        raise ModelError(f"{given}: is or gave a {type(found).__name__}; {WANTED}")
    if shape is None:
        return named
    if not isinstance(shape, tuple | list) or len(shape) != 3 or shape[0] not in (1, 3):
        raise ModelError(f"{given}: image_shape={shape!r:.80}: must be (C, H, W), C 1 or 3")
    return replace(named, channels=shape[0], size=(shape[1], shape[2]))


def _run(given: str, device: torch.device) -> Any:  # noqa: ANN401 - whatever the user's code makes
    """What NAME of FILE.py is, or gives where it is a function: of no argument, or of the device's name."""
    file, _, name = given.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"{file}: no such file")
    called = f"own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(called, path)
    assert found is not None
    assert found.loader is not None
    module, loader = importlib.util.module_from_spec(found), found.loader
    # As if it were run: what lies beside it can be imported, here and not for another file's sake.
    beside, before = str(path.parent.resolve()), set(sys.modules)
    sys.path.insert(0, beside)
    sys.modules[called] = module
    try:
        yours(path, lambda: loader.exec_module(module))
        if not hasattr(module, name):
            there = [n for n in vars(module) if not n.startswith("_")]
            raise ModelError(f"{file}: has no {name!r:.80}; {did_you_mean(name, there)}".rstrip("; "))
        made = getattr(module, name)
        if isinstance(made, ScoreModel | ImageModel | nn.Module) or not callable(made):
            return made
        if (needed := _needed(made)) > 1:
            raise ModelError(f"{given}: takes {needed} arguments: {WANTED}")
        return yours(path, lambda: made(*[str(device)] * needed))
    finally:
        sys.path.remove(beside)
        for other in set(sys.modules) - before - {called}:
            if str(getattr(sys.modules[other], "__file__", None) or "").startswith(beside + os.sep):
                del sys.modules[other]


def _needed(function: Callable[..., Any]) -> int:
    """How many arguments a function must be given; two where it doesn't say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 2
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


def yours(path: Path | str, call: Callable[[], R]) -> R:
    """Call what may be anybody's code: what it raises becomes a line that names its place."""
    try:
        return call()
    except DualscoreError:
        raise
    except (Exception, SystemExit) as error:
        name = Path(path).name
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == name]
        where = f", line {frames[-1].lineno}" if frames else ""
        raise ModelError(f"{path}{where}: {type(error).__name__}: {one_line(error):.300}") from error
