"""Model files: weights as safetensors, and in its header all else that is needed to use them.

One file, `model.safetensors`, is complete; `README.md` beside it is for people. The header's entry
`dualscore` holds a JSON document, which has the SHA-256 of itself and of every tensor in it. Nothing in a
file is ever executed. docs/models.md describes the format.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from dualscore.energy import EnergyModel, ScoreModel
from dualscore.errors import CheckpointError, DamagedCheckpointError, DualscoreError
from dualscore.files.aside import write_aside
from dualscore.files.plain_text import printable
from dualscore.files.typed_json import TypedJson
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel, Origin
from dualscore.model_files import architecture
from dualscore.model_files.card import card
from dualscore.model_files.evaluated import read_mass
from dualscore.version import installed_version

MODEL_FILE, CARD_FILE = "model.safetensors", "README.md"
ENTRY = "dualscore"
"""Of the header: the JSON document."""
FORMAT, VERSION = "dualscore model", 1
LONGEST = 2**22
"""Characters of the JSON document, at most."""
WEIGHT, PRIOR, ENERGIES = "model.", "prior.", "validation.energies"
"""What names of tensors begin with, or are."""


class _Document(TypedJson):
    """A model file's document."""

    def fail(self, problem: str) -> DualscoreError:
        return CheckpointError(f"{self.path}: {self.key or 'the document'} {problem}; export the model again")


def is_model_file(path: Path) -> bool:
    """Whether a file is of the safetensors format: a length of eight bytes, then JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def check_folder(folder: Path) -> str:
    """Refuse a folder that a model cannot be written to; returns what would become of it."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: a file; name a folder for the model")
    if not folder.is_dir() or not any(folder.iterdir()):
        return "new"
    if not _is_ours(folder / MODEL_FILE):
        raise CheckpointError(f"{folder}: holds something else than a model; name a new folder")
    return "the model in it is replaced"


def write_model(model: ImageModel, folder: Path) -> Path:
    """Write a model that needs neither its run nor its data: `model.safetensors` and `README.md`.

    Args:
        model: what to write; it knows its origin, as models from files do.
        folder: made if need be; a model in it is replaced, anything else is left alone.

    Returns:
        The file with the weights.

    Raises:
        CheckpointError: if the model cannot be written, or the folder holds something else.
    """
    if model.origin is None:
        raise CheckpointError("only models that dualscore.load gave can be saved: others cannot be rebuilt")
    check_folder(folder)
    path = folder / MODEL_FILE
    parts = [(WEIGHT, model.score_model), *([(PRIOR, model.prior)] if model.prior is not None else [])]
    tensors = {
        f"{prefix}{name}": value.detach().cpu().contiguous().clone()
        for prefix, part in parts
        for name, value in part.state_dict().items()
    }
    if wrong := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise CheckpointError(
            f"{wrong[0]} and {len(wrong) - 1} more weights are not finite: no model to save"
        )
    if model.origin.energies is not None:
        tensors[ENERGIES] = model.origin.energies.double().clone()
    document = describe(model, model.origin)
    sealed = document | {"digest": digest(document, tensors)}
    content = to_bytes(tensors, {ENTRY: json.dumps(sealed, ensure_ascii=False, allow_nan=False)})
    shown = card(document, model, folder.name)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(path, content)
    write_aside(folder / CARD_FILE, shown.encode())
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file is a model that `write_model` wrote: others give theirs the same name."""
    try:
        with safe_open(path, framework="pt") as file:
            return ENTRY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def describe(model: ImageModel, origin: Origin) -> dict[str, Any]:
    """The document of a model, plain values."""
    log_z = model.log_normalizer
    known = log_z is not None and math.isfinite(log_z)
    return {
        "format": FORMAT,
        "version": VERSION,
        "written_by": {"dualscore": installed_version(), "torch": metadata.version("torch")},
        "name": printable(origin.name),
        "provenance": printable(model.provenance),
        "licence": printable(origin.licence),
        "facts": {name: printable(text) for name, text in origin.facts.items()},
        "architecture": origin.architecture,
        "image_shape": None if model.image_shape is None else list(model.image_shape),
        "t_max": model.t_max,
        "noisy_entropy": model.noisy_entropy,
        "log_normalizer": {
            "value": log_z,
            "stderr": model.log_normalizer_stderr,
            "how": model.normalized_on or "not said",
            "mass": None if model.mass is None else asdict(model.mass),
        }
        if known
        else None,
        "evaluation": origin.evaluation,
    }


def digest(document: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's content.

    Args:
        document: plain values; as JSON with sorted keys, without spaces, in ASCII.
        tensors: of each, in the order of names, name, type, shape and bytes.

    Returns:
        Hexadecimal digits.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def read_model(path: Path) -> ImageModel:
    """Read a model file.

    Args:
        path: a `.safetensors` file that `write_model` wrote.

    Returns:
        The model, in evaluation mode, on the CPU, in the precision that it was written in.

    Raises:
        CheckpointError: if the file is missing, damaged, foreign, or its parts do not belong to each other.
    """
    text, tensors = _read(path)
    document = _parse(text, path)
    content = document.mapping()
    if content.pop("digest", None) != digest(content, tensors):
        raise DamagedCheckpointError(f"{path}: damaged: its content has another digest than it says")
    weights, priors = (
        {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
        for prefix in (WEIGHT, PRIOR)
    )
    known = {WEIGHT + name for name in weights} | {PRIOR + name for name in priors} | {ENERGIES}
    if strangers := tensors.keys() - known:
        raise CheckpointError(f"{path}: has a tensor {min(strangers)!r:.80}, which belongs to no model")
    try:
        shape = _shape(document["image_shape"])
        network = architecture.rebuild(document["architecture"], weights, shape)
        if priors and shape is None:
            raise ValueError("the Gaussian of the training images is of one size, and the model of any")
        prior = architecture.prior(shape, priors) if priors and shape is not None else None
    except CheckpointError:
        raise
    except (DualscoreError, *UNFIT) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: weights and architecture do not belong to this version or to each other: {reason:.200}"
        ) from error
    return _assembled(document, network, prior, shape, tensors.get(ENERGIES)).eval()


UNFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError)
"""What absurd settings make torch and Python raise."""


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such model") from error
    except SafetensorError as error:
        _damaged(path, error)
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); try again") from error
    text = header.get(ENTRY)
    if text is None or len(text) > LONGEST:
        raise CheckpointError(f"{path}: not a dualscore model: its header does not say which network it is")
    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise CheckpointError(f"{path}: {name!r:.80} holds {value.dtype}, neither single nor double")
        if name.startswith(WEIGHT) and not value.isfinite().all():
            raise CheckpointError(f"{path}: {name!r:.80} holds weights that are not finite")
    return text, tensors


def _parse(text: str, path: Path) -> _Document:
    try:
        document = _Document(json.loads(text, parse_constant=_refuse_constant, parse_float=_finite), path)
    except (ValueError, RecursionError) as error:
        _damaged(path, error)
    if document["format"].value != FORMAT:
        raise document["format"].fail(f"is {document['format'].value!r:.40}, not {FORMAT!r}")
    if (version := document["version"].count()) > VERSION:
        raise CheckpointError(
            f"{path}: of version {version} of the format, and this version of dualscore reads up to "
            f"{VERSION}: install a newer one"
        )
    return document


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_constant(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _damaged(path: Path, error: BaseException) -> NoReturn:
    reason = " ".join(str(error).split())
    raise DamagedCheckpointError(f"{path}: damaged or not a model ({reason:.120})") from error


def _shape(entry: TypedJson) -> tuple[int, int, int] | None:
    if entry.value is None:
        return None
    sides = [side.count() for side in entry.items()]
    if len(sides) != 3:
        raise entry.fail("must be [channels, height, width]")
    return sides[0], sides[1], sides[2]


def _assembled(
    document: _Document,
    network: ScoreModel,
    prior: StationaryGaussian | None,
    shape: tuple[int, int, int] | None,
    energies: Tensor | None,
) -> ImageModel:
    value = stderr = mass = None
    how = ""
    if (log_z := document["log_normalizer"]).value is not None:
        if not isinstance(network, EnergyModel):
            raise log_z.fail("is of a denoiser, which has none")
        value, how = log_z["value"].number(), log_z["how"].text()
        stderr = None if log_z["stderr"].value is None else log_z["stderr"].number(0.0)
        # Files from before the mass was measured do not have it.
        mass = read_mass(log_z["mass"]) if log_z.mapping().get("mass") is not None else None
    if energies is not None and (energies.ndim != 1 or not len(energies) or not energies.isfinite().all()):
        raise document.fail(f"stands beside {ENERGIES} that are no list of finite numbers")
    names = [_Document(k, document.path, "facts").text() for k in document["facts"].mapping()]
    facts = {name: document["facts"][name].text() for name in names}
    evaluation = document["evaluation"]
    entropy = document["noisy_entropy"]
    return ImageModel(
        network,
        image_shape=shape,
        log_normalizer=value,
        log_normalizer_stderr=stderr,
        normalized_on=how,
        t_max=document["t_max"].number(1e-300),
        t_min=architecture.smallest_variance(document["architecture"]),
        noisy_entropy=None if entropy.value is None else entropy.number(),
        prior=prior,
        provenance=document["provenance"].text(),
        origin=Origin(
            document["name"].text(),
            document["architecture"].mapping(),
            facts,
            None if evaluation.value is None else evaluation.mapping(),
            None if energies is None else energies.double().sort().values,
            document["licence"].text(r"[^\x00-\x1f\x7f]*"),
        ),
        mass=mass,
    )
