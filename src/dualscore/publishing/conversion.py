"""From a released checkpoint to a model file, with log Z estimated on images of the user's."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dualscore.devices import allow_tf32, find_device
from dualscore.energy import Energy, EnergyModel
from dualscore.errors import CheckpointError, NormalizationError, ScoreError
from dualscore.images import to_pixels
from dualscore.likelihood import Estimate, paper_bits_per_dim
from dualscore.model import ImageModel
from dualscore.model_files.loading import is_released, load
from dualscore.networks import UNet
from dualscore.pictures.photographs import SUFFIXES
from dualscore.publishing.save_model import save
from dualscore.scoring import image_files as files
from dualscore.scoring.image_files import Problems, progress_bar, usable
from dualscore.scoring.scorer import wanted_size
from dualscore.terminal import final

NOT_FINITE = "has an energy that is not finite"


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
) -> Path:
    """Write a released checkpoint as a model file; `normalizer` estimates log Z on the images."""
    check_released(path)
    model = load(path)
    if not isinstance(model.score_model, EnergyModel):
        unused = "; the images are not used" if images else ""
        console.print(f"a denoiser: it has no energy, so no log Z and no likelihoods{unused}", soft_wrap=True)
    elif normalizer:
        if not images:
            raise NormalizationError(
                f"{path}: its log Z is not known; name images to estimate it on with --images, or leave it "
                "unknown with --no-normalizer"
            )
        _normalize(model, images, out, console, resize, batch_size, workers, device)
    return save(model, out, licence)


def check_released(path: Path) -> str:
    """Refuse a file that is no released checkpoint; returns what it is."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if not is_released(path):
        raise CheckpointError(f"{path}: not a checkpoint in the released format; for ours, use export")
    return "a released checkpoint"


def _normalize(
    model: ImageModel,
    given: Sequence[Path],
    out: Path,
    console: Console,
    resize: bool,
    batch_size: int,
    workers: int,
    device: str,
) -> None:
    """Estimate log Z on images; their energies, and what the protocol says of them, are kept as well."""
    allow_tf32(False)
    files.check_given(given, out)
    size = wanted_size(model, given, out, resize=resize, normalize=True)
    assert isinstance(model.score_model, Energy)
    assert isinstance(model.score_model.network, UNet)
    assert model.origin is not None
    channels = model.score_model.network.channels
    model.to(find_device(device))
    problems = Problems(console)
    loader = files.load(files.ImageFiles(given, out, size, batch_size), workers)
    found: list[Tensor] = []
    with progress_bar(console) as progress:
        task = progress.add_task("evaluated", total=None)

        def clean() -> Iterator[Tensor]:
            for chunk in usable(iter(loader), problems):
                pixels = to_pixels(chunk.images, channels)
                energies = model.energy(pixels, 0.0, len(pixels)).double().cpu()
                known = energies.isfinite()
                problems.add([(p, NOT_FINITE) for p, k in zip(chunk.paths, known, strict=True) if not k])
                if known.any():
                    found.append(energies[known])
                    yield pixels[known]
                progress.advance(task, len(pixels))

        try:
            model.normalize(clean(), batch_size=batch_size)
        except ValueError as error:
            if not found:
                problem = problems.first or f"{given[0]} holds no image ({', '.join(SUFFIXES)})"
                raise ScoreError(f"no image could be used: {problem}") from error
            raise NormalizationError(f"log Z cannot be estimated on these images: {error}") from error
    problems.tell()
    model.cpu()
    rising = torch.cat(found).sort().values
    model.image_shape = (channels, size.height, size.width)
    assert model.log_normalizer is not None
    assert model.log_normalizer_stderr is not None
    log_z = Estimate(model.log_normalizer, model.log_normalizer_stderr)
    dimension = channels * size.height * size.width
    figure = f"{paper_bits_per_dim(rising, log_z, dimension)} by the paper's protocol, an estimate, no bound"
    facts = model.origin.facts | {f"bits/dim of the {len(rising):,} images": figure}
    model.origin = replace(model.origin, facts=facts, energies=rising)
    shape = "×".join(map(str, model.image_shape))
    counted = f"; {problems.count:,} left out" if problems.count else ""
    for line in (
        f"log Z {log_z} nats, on {len(rising):,} images of {shape}{counted}",
        f"bits/dim of these images: {figure}",
    ):
        final(console, line, soft_wrap=True)
