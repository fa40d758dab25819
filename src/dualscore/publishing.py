"""Models made ready for others: saved with all that is known of them, or converted from released ones."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dualscore.devices import to_measure
from dualscore.energy import EnergyModel, normalized_by_form
from dualscore.errors import CheckpointError, NormalizationError, ScoreError
from dualscore.files.aside import sha256
from dualscore.images import to_pixels
from dualscore.likelihood import Estimate, paper_bits_per_dim
from dualscore.model import ImageModel
from dualscore.model_files.exported import is_model_file, write_model
from dualscore.model_files.loading import evaluation_of, is_released, load, locate
from dualscore.scoring import image_files as files
from dualscore.scoring.image_files import Problems, read_batches
from dualscore.scoring.scorer import wanted_size

NOT_FINITE = "has an energy that is not finite"


def save(model: ImageModel | str | Path, folder: str | Path, licence: str = "") -> Path:
    """Write a model that anyone can load: weights, log Z, where it comes from, how it was measured.

    Args:
        model: a run's folder or a checkpoint, whose evaluation goes into the file where there is a finished
            one; or a model that `load` gave, as it is now.
        folder: gets `model.safetensors` and `README.md`; a model in it is replaced.
        licence: the terms under which the weights may be used, one line; empty keeps what the model says.

    Returns:
        The file with the weights.

    Raises:
        CheckpointError: if the model cannot be read or written, or the folder holds something else.
    """
    if not isinstance(model, ImageModel):
        path = locate(model)
        model = load(path)
        add_evaluation(model, path)
    if licence and model.origin is not None:
        model.origin = replace(model.origin, licence=licence)
    return write_model(model, Path(folder))


def add_evaluation(model: ImageModel, checkpoint: Path) -> str:
    """Give a checkpoint's model what its evaluation found, without local paths; returns what that was."""
    from dualscore.scoring.score_images import find_reference  # brings Lightning, which a model does not need

    assert model.origin is not None
    if not is_model_file(checkpoint):
        if (report := evaluation_of(checkpoint, sha256(checkpoint))) is not None:
            kept = {key: value for key, value in report.items() if key != "checkpoint"}
            if isinstance(kept.get("dataset"), dict):
                kept["dataset"] = {key: value for key, value in kept["dataset"].items() if key != "path"}
            model.origin = replace(model.origin, evaluation=kept)
            # A validation in training keeps the value alone, an evaluation estimates its error too.
            with suppress(KeyError, TypeError, ValueError):  # measured without the paper's protocol
                log_z = report["bits_per_dim"]["paper"]["log_normalizer"]
                value, stderr = float(log_z["value"]), float(log_z["stderr"])
                if model.log_normalizer is not None and not normalized_by_form(model.score_model):
                    model.log_normalizer_stderr = stderr
                    model.normalized_on += f"; by the evaluation {value:.3f}, whose error this is"
        if (reference := find_reference(checkpoint)) is not None:
            rising = reference.energies.double().cpu().sort().values
            model.origin = replace(model.origin, energies=rising)
    energies = model.origin.energies
    found = "goes in" if model.origin.evaluation is not None else "none of this checkpoint was found"
    return found if energies is None else f"{found}; percentiles among {len(energies):,} images"


def check_released(path: Path) -> str:
    """Refuse a file that is no released checkpoint; returns what it is."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if not is_released(path):
        raise CheckpointError(f"{path}: not a checkpoint in the released format; for ours, use export")
    return "a released checkpoint"


def convert(
    path: Path,
    images: Sequence[Path],
    out: Path,
    console: Console,
    *,
    normalizer: bool = True,
    licence: str = "",
    resize: bool = False,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "cpu",
) -> tuple[Path, list[str]]:
    """Write a released checkpoint as a model file; `normalizer` estimates log Z on the images.

    Returns the file with the weights, and lines on what was estimated.
    """
    check_released(path)
    model, lines = load(path), []
    if not isinstance(model.score_model, EnergyModel):
        unused = "; the images are not used" if images else ""
        console.print(f"a denoiser: it has no energy, so no log Z and no likelihoods{unused}", soft_wrap=True)
    elif normalizer:
        if not images:
            raise NormalizationError(
                f"{path}: its log Z is not known; name images to estimate it on with --images, or leave it "
                "unknown with --no-normalizer"
            )
        files.check_given(images, out)
        size = wanted_size(model, images, out, resize=resize, normalize=True)
        stream = files.ImageFiles(images, out, size, batch_size)
        lines = _normalize(to_measure(model, device), stream, workers, console)
    return save(model.cpu(), out, licence), lines


def _normalize(model: ImageModel, stream: files.ImageFiles, workers: int, console: Console) -> list[str]:
    """Estimate log Z on images; their energies, and what the protocol says of them, are kept as well."""
    assert model.origin is not None
    shape = (stream.size.channels, stream.size.height, stream.size.width)
    problems, found = Problems(), list[Tensor]()
    with read_batches(stream, workers, problems, console, "evaluated") as chunks:

        def clean() -> Iterator[Tensor]:
            for chunk in chunks:
                pixels = to_pixels(chunk.images, shape[0])
                energies = model.energy(pixels, 0.0, len(pixels)).double().cpu()
                known = energies.isfinite()
                problems.add([(p, NOT_FINITE) for p, k in zip(chunk.paths, known, strict=True) if not k])
                if known.any():
                    found.append(energies[known])
                    yield pixels[known]

        try:
            model.normalize(clean(), batch_size=stream.batch_size)
        except ValueError as error:
            if not found:
                raise ScoreError(f"no image could be used: {problems.reason(stream.given)}") from error
            raise NormalizationError(f"log Z cannot be estimated on these images: {error}") from error
    problems.tell(console)
    assert model.log_normalizer is not None
    assert model.log_normalizer_stderr is not None
    log_z = Estimate(model.log_normalizer, model.log_normalizer_stderr)
    rising = torch.cat(found).sort().values
    bits = paper_bits_per_dim(rising, log_z, math.prod(shape))
    figure = f"{bits} by the paper's protocol, an estimate, no bound"
    facts = model.origin.facts | {f"bits/dim of the {len(rising):,} images": figure}
    model.image_shape, model.origin = shape, replace(model.origin, facts=facts, energies=rising)
    counted = f"; {problems.count:,} left out" if problems.count else ""
    sides = "×".join(map(str, shape))
    return [
        f"log Z {log_z} nats, on {len(rising):,} images of {sides}{counted}",
        f"bits/dim of these images: {figure}",
    ]
