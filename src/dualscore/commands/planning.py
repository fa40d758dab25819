"""Checks that several dry runs share: models, images, devices, earlier runs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dualscore.terminal.boxes import Plan
from dualscore.terminal.hints import from_make

if TYPE_CHECKING:
    from dualscore.drawing.draw_images import DrawOptions
    from dualscore.model import ImageModel
    from dualscore.sampling import Method
    from dualscore.scoring.image_files import Size
    from dualscore.settings.config import ExperimentConfig

MOST_COUNTED = 1_000_000
"""Stop counting files here: folders may be huge."""


def open_model(plan: Plan, path: Path) -> "ImageModel | None":
    """Open a model and describe it; None if that fails."""
    from dualscore.model_files.loading import load, locate

    found: list[ImageModel] = []

    def look() -> str:
        model = load(path)
        found.append(model)
        shape = "" if model.image_shape is None else f", images {'×'.join(map(str, model.image_shape))}"
        parameters = sum(p.numel() for p in model.parameters())
        return f"{locate(path)}: {model.provenance}; {parameters:,} parameters{shape}"

    plan.check("model", look)
    return found[0] if found else None


def count_images(plan: Plan, name: str, given: Sequence[Path], out: Path, hint: str = "") -> int:
    """Count image files, without reading them; `hint` as in `check_given`."""
    from itertools import islice

    from dualscore.errors import ScoreError
    from dualscore.pictures.photographs import SUFFIXES
    from dualscore.scoring.image_files import check_given, find

    counts: list[int] = []

    def look() -> str:
        check_given(given, out, hint)
        counts.append(sum(1 for _ in islice(find(given, out), MOST_COUNTED)))
        if not counts[0]:
            raise ScoreError(f"{given[0]}: holds no image ({', '.join(SUFFIXES)})")
        more = " or more" if counts[0] == MOST_COUNTED else ""
        files = "file" if counts[0] == 1 else "files"
        return f"{counts[0]:,}{more} image {files} in {', '.join(map(str, given))}"

    plan.check(name, look)
    return counts[0] if counts else 0


def image_size(
    plan: Plan, model: "ImageModel", given: Sequence[Path], out: Path, resize: bool, normalize: bool
) -> None:
    """Add the size that images must have, and check the first one."""
    from dualscore.errors import ScoreError
    from dualscore.scoring.image_files import decode, find
    from dualscore.scoring.scorer import wanted_size

    def look() -> str:
        size: Size = wanted_size(model, given, out, resize=resize, normalize=normalize)
        first = next(find(given, out))
        try:
            decode(first, size)
        except (ValueError, OSError) as error:
            raise ScoreError(f"{first}: the first image {error}") from error
        how = "others are cropped and resized" if resize else "others are left out"
        return f"{size.width}×{size.height}; {how}"

    plan.check("size", look)


def device(plan: Plan, wanted: str | None) -> None:
    """Add the device that the network would run on."""
    from dualscore.devices import default_device, find_device

    plan.check("device", lambda: str(find_device(wanted or default_device())))


def drawing(
    title: str,
    path: Path,
    images: Sequence[Path] | None,
    options: "DrawOptions",
    look: "tuple[str, Callable[[ImageModel], str]] | None" = None,
) -> Plan:
    """The plan of a command that draws samples; `look` is a further row's name and check."""
    from dualscore.drawing.draw_images import check_images, read_images

    plan = Plan(title)
    model = open_model(plan, path)
    if model is not None:
        plan.check("draws", lambda: f"images of {check_images(model, path)}")
        if not plan.problems:
            plan.check("method", lambda: _method(model, options.method, from_noise=title != "denoise"))
        if images is not None and not plan.problems:
            plan.check("images", lambda: f"{len(read_images(model, images, options))}, of the right size")
        if look is not None and not plan.problems:
            plan.check(look[0], lambda: look[1](model))
    device(plan, options.device)
    samples = options.count * (1 if images is None else len(images))
    each = f"{2 * options.steps - 1:,} network evaluations for each"
    if options.method.value == "flow":
        each = "as many network evaluations as its solver takes"
    batches = math.ceil(samples / options.batch_size)
    plan.add("work", f"{samples:,} samples by {options.method.value}, in batches: {batches}; {each}")
    return plan.writes(options.out, "grid.png", "samples.json", "samples.npz", "samples/")


def _method(model: "ImageModel", method: "Method", from_noise: bool) -> str:
    """The method's name, after checking that the model can use it."""
    from dualscore.sampling.sample_images import check_energy, gaussian_start

    if from_noise:
        gaussian_start(model)
    check_energy(model, method)
    return method.value


def data(plan: Plan, config: "ExperimentConfig") -> dict[str, int]:
    """Check an experiment's data without writing anything; returns the images of each split."""
    from dualscore.assemble import find_data, known_density
    from dualscore.data.transfer import Address, is_remote

    if known_density(config) is not None:
        plan.add("data", f"draws its own, {config.data.density.value}")
        return {}
    if is_remote(config.data.path):
        elsewhere = "elsewhere: not looked at, which would fill the cache"
        plan.check("data", lambda: f"{Address(config.data.path)}, {elsewhere}")
        return {}
    if from_make() and config.data.dataset.startswith("demo") and not Path(config.data.path).exists():
        plan.add("data", f"{config.data.path}: not there yet; make prepares it, in seconds")
        return {}
    counts: dict[str, int] = {}

    def look() -> str:
        _, manifest = find_data(config)
        counts.update({name: split.images for name, split in manifest.splits.items()})
        shape = "×".join(map(str, manifest.image_shape))
        if config.data.channels < manifest.image_shape[0]:
            shape += ", read as gray"
        return (
            f"{config.data.path}: {counts['train']:,} training, {counts['val']:,} validation images, {shape}"
        )

    plan.check("data", look)
    return counts


def describe_run(folder: Path, overrides: Sequence[str]) -> str:
    """A run's folder, experiment and length."""
    from dualscore.figures.trained import read_run

    run, config = read_run(folder, overrides)
    return f"{run.folder}: {config.name}, {config.trainer.max_steps:,} steps"


def devices(config: "ExperimentConfig") -> str:
    """The devices that training would use here; refuses missing GPUs."""
    import torch

    from dualscore.errors import TrainingError
    from dualscore.training.trainer import accelerator

    wanted, kind = config.trainer.devices, accelerator(config)
    if kind == "cuda" and torch.cuda.device_count() < wanted:
        raise TrainingError(f"trainer.devices={wanted}: there are {torch.cuda.device_count()} GPUs here")
    nodes = f", on {config.trainer.nodes} nodes" if config.trainer.nodes > 1 else ""
    return f"{wanted} × {kind}{nodes}"
