"""Model files: weights as safetensors, and in its header all else that is needed to use them.

One file, `model.safetensors`, is complete; `README.md` beside it is for people. The header's entry
`dualscore` holds a JSON document, which has the SHA-256 of itself and of every tensor in it. Nothing in a
file is ever executed. docs/models.md describes the format.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from dualscore.energy import EnergyModel
from dualscore.errors import CheckpointError, DamagedCheckpointError, DualscoreError
from dualscore.files.archives import DAMAGED
from dualscore.files.aside import write_aside
from dualscore.files.plain_text import one_line, printable
from dualscore.files.typed_json import TypedJson
from dualscore.likelihood.normalizer import MeasuredMass
from dualscore.model import ImageModel, Origin
from dualscore.model_files import architecture
from dualscore.model_files.card import card
from dualscore.shipped import installed_version

MODEL_FILE, CARD_FILE = "model.safetensors", "README.md"
ENTRY = "dualscore"  # of the header: the JSON document
FORMAT, VERSION = "dualscore model", 1
LONGEST = 2**22  # characters of the JSON document, at most
WEIGHT, PRIOR, ENERGIES, REFERENCES = (
    "model.",
    "prior.",
    "validation.energies",
    "references",
)  # what names of tensors begin with, or are
LEAST = {"stderr": 0.0, "effective_share": 0.0, "noise_variance": 1e-300}  # of the figures of a mass


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
    try:
        with safe_open(folder / MODEL_FILE, framework="pt") as file:
            ours = ENTRY in (file.metadata() or {})  # others give theirs the same name
    except (OSError, SafetensorError):
        ours = False
    if not ours:
        raise CheckpointError(f"{folder}: holds something else than a model; name a new folder")
    return "the model in it is replaced"


def write_model(model: ImageModel, folder: Path) -> Path:
    """Write `model.safetensors` and `README.md` into a folder; a model in it is replaced.

    Returns the file with the weights. A CheckpointError says that the model cannot be written, or that the
    folder holds something else.
    """
    if model.origin is None:
        raise CheckpointError("only models that dualscore.load gave can be saved: others cannot be rebuilt")
    check_folder(folder)
    parts = nn.ModuleDict({"model": model.score_model})
    if model.prior is not None:
        parts["prior"] = model.prior
    tensors = {name: value.cpu().contiguous().clone() for name, value in parts.state_dict().items()}
    if wrong := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise CheckpointError(
            f"{wrong[0]} and {len(wrong) - 1} more weights are not finite: no model to save"
        )
    if model.origin.energies is not None:
        tensors[ENERGIES] = model.origin.energies.double().clone()
    if model.origin.references is not None:
        tensors[REFERENCES] = model.origin.references.double().clone()
    document = _describe(model, model.origin)
    sealed = document | {"digest": digest(document, tensors)}
    content = to_bytes(tensors, {ENTRY: json.dumps(sealed, ensure_ascii=False, allow_nan=False)})
    shown = card(document, model, folder.name)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / MODEL_FILE, content)
    write_aside(folder / CARD_FILE, shown.encode())
    return folder / MODEL_FILE


def _describe(model: ImageModel, origin: Origin) -> dict[str, Any]:
    shape: tuple[int, ...] | None = (
        model.image_shape or model.normalized_shape
    )  # where any size goes, log Z goes with one
    log_z = None
    if model.log_normalizer is not None and math.isfinite(model.log_normalizer):
        log_z = {
            "value": model.log_normalizer,
            "stderr": model.log_normalizer_stderr,
            "how": model.normalized_on or "not said",
            "mass": None if model.mass is None else asdict(model.mass),
        }
    return {
        "format": FORMAT,
        "version": VERSION,
        "written_by": {"dualscore": installed_version(), "torch": metadata.version("torch")},
        "name": printable(origin.name),
        "provenance": printable(model.provenance),
        "licence": printable(origin.licence),
        "facts": {name: printable(text) for name, text in origin.facts.items()},
        "architecture": origin.architecture,
        "image_shape": None if shape is None else list(shape),
        "t_max": model.t_max,
        "noisy_entropy": model.noisy_entropy,
        "log_normalizer": log_z,
        "evaluation": origin.evaluation,
        **({"references": printable(origin.reference_name)} if origin.references is not None else {}),
    }


def digest(document: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of plain values as JSON with sorted keys, without spaces, in ASCII, then of each tensor.

    Of tensors, in the order of names, it takes name, type, shape and bytes.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def read_model(path: Path) -> ImageModel:
    """Read what `write_model` wrote: in evaluation mode, on the CPU, in the precision it was written in.

    A CheckpointError says that the file is missing, damaged, foreign, or its parts do not belong together.
    """
    document, tensors = _read(path)
    energies = tensors.pop(ENERGIES, None)
    if energies is not None and (energies.ndim != 1 or not len(energies) or not energies.isfinite().all()):
        raise document.fail(f"stands beside {ENERGIES} that are no list of finite numbers")
    references = tensors.pop(REFERENCES, None)
    if references is not None and (
        references.ndim != 2
        or references.shape[1] != 2
        or not references.isfinite().all()
        or not len(references)
        or not (references[:, 1] > 0).all()
    ):
        raise document.fail(f"stands beside {REFERENCES} that are no bits and pixels of photographs")
    weights, priors = (architecture.below(prefix, tensors) for prefix in (WEIGHT, PRIOR))
    if strangers := [name for name in tensors if not name.startswith((WEIGHT, PRIOR))]:
        raise CheckpointError(f"{path}: has a tensor {min(strangers)!r:.80}, which belongs to no model")
    try:
        sides = document["image_shape"]
        shape = None if sides.value is None else architecture.three_counts(sides)
        network, t_min = architecture.rebuild(document["architecture"], weights, shape)
        if priors and shape is None:
            raise ValueError("the Gaussian of the training images is of one size, and the model of any")
        prior = architecture.prior(shape, priors) if priors and shape is not None else None
    except CheckpointError:
        raise
    except (DualscoreError, *DAMAGED) as error:
        raise CheckpointError(
            f"{path}: weights and architecture do not belong to this version or to each other: "
            f"{one_line(error):.200}"
        ) from error
    log_z, entropy, evaluation = (document[k] for k in ("log_normalizer", "noisy_entropy", "evaluation"))
    if log_z.value is not None and not isinstance(network, EnergyModel):
        raise log_z.fail("is of a denoiser, which has none")
    known, facts = log_z.value is not None, document["facts"]
    return ImageModel(
        network,
        image_shape=shape,
        log_normalizer=log_z["value"].number() if known else None,
        log_normalizer_stderr=_optional(log_z["stderr"], 0.0) if known else None,
        normalized_on=log_z["how"].text() if known else "",
        t_max=document["t_max"].number(1e-300),
        t_min=t_min,
        noisy_entropy=_optional(entropy),
        prior=prior,
        provenance=document["provenance"].text(),
        origin=Origin(
            document["name"].text(),
            document["architecture"].mapping(),
            {_Document(name, path, "facts").text(): facts[name].text() for name in facts.mapping()},
            None if evaluation.value is None else evaluation.mapping(),
            None if energies is None else energies.double().sort().values,
            document["licence"].text(r"[^\x00-\x1f\x7f]*"),
            None if references is None else references.double(),
            "" if references is None else document["references"].text(),
        ),
        # Files from before the mass was measured do not have it.
        mass=read_mass(log_z["mass"]) if known and log_z.mapping().get("mass") is not None else None,
    ).eval()


def read_mass(entry: TypedJson) -> MeasuredMass:
    """A mass as JSON holds it; a DualscoreError names the key that is missing or no number."""
    names = [field.name for field in fields(MeasuredMass)]
    return MeasuredMass(**{name: entry[name].number(LEAST.get(name, -math.inf)) for name in names})


def _optional(entry: TypedJson, least: float = -math.inf) -> float | None:
    return None if entry.value is None else entry.number(least)


def _read(path: Path) -> tuple[_Document, dict[str, Tensor]]:
    """The document and the tensors as they were written: real numbers, of which weights are finite."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ENTRY, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if not 0 < len(text) <= LONGEST:
            raise CheckpointError(
                f"{path}: not a dualscore model: its header does not say which network it is"
            )
        document = _Document(json.loads(text, parse_constant=_finite, parse_float=_finite), path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such model") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: damaged or not a model ({one_line(error):.120})") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); try again") from error
    if document["format"].value != FORMAT:
        raise document["format"].fail(f"is {document['format'].value!r:.40}, not {FORMAT!r}")
    if (version := document["version"].count()) > VERSION:
        raise CheckpointError(
            f"{path}: of version {version} of the format, and this version of dualscore reads up to "
            f"{VERSION}: install a newer one"
        )
    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise CheckpointError(f"{path}: {name!r:.80} holds {value.dtype}, neither single nor double")
        if name.startswith(WEIGHT) and not value.isfinite().all():
            raise CheckpointError(f"{path}: {name!r:.80} holds weights that are not finite")
    content = document.mapping()
    if content.pop("digest", None) != digest(content, tensors):
        raise DamagedCheckpointError(f"{path}: damaged: its content has another digest than it says")
    return document, tensors


def _finite(digits: str) -> float:
    if math.isfinite(number := float(digits)):
        return number
    raise ValueError(f"{digits} is not a number")
