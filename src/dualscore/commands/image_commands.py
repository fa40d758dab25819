"""Commands that measure or draw images with a model: score, ood, sample, denoise, inpaint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dualscore.commands.options import (
    WORKERS,
    BatchSize,
    Count,
    Device,
    ImageFiles,
    Model,
    Normalize,
    Resize,
    Results,
    Seed,
    Steps,
    Workers,
    positive,
)
from dualscore.terminal import shared_console
from dualscore.terminal.boxes import Plan

if TYPE_CHECKING:
    from dualscore.drawing.draw_images import DrawOptions
    from dualscore.model import ImageModel

PHOTOGRAPHS = (
    "Errors are over photographs. In a folder that holds sub-folders of images and no image itself, the "
    "images of a sub-folder are taken for those of one photograph; any other image is its own."
)
Sampler = Annotated[Literal["metropolis", "langevin"], "default: %(default)s"]


def score(
    model: Model,
    images: Annotated[Sequence[Path], "image files, and folders of them"],
    *,
    out: Annotated[Path, "folder for the results"] = Path("scores"),
    psnr: Annotated[float | None, "effective dimension at this noise level", {"metavar": "DB"}] = None,
    maps: Annotated[bool, "no heat map of each image"] = True,
    resize: Resize = False,
    batch_size: BatchSize = 128,
    workers: Workers = WORKERS,
    device: Device = None,
    normalize: Normalize = False,
    dry_run: bool = False,
) -> Plan | None:
    """How probable images are, and where they are not."""
    if not dry_run:
        from dualscore.devices import default_device
        from dualscore.scoring.score_images import ScoreOptions
        from dualscore.scoring.score_images import score as score_images

        options = ScoreOptions(
            out=out,
            psnr=psnr,
            maps=maps,
            resize=resize,
            normalize=normalize,
            batch_size=batch_size,
            workers=max(0, workers),
            device=device or default_device(),
        )
        score_images(model, images, options, shared_console())
        return None
    from dualscore.commands import planning
    from dualscore.scoring.scorer import check_level

    plan = Plan("score")
    opened = planning.open_model(plan, model)
    count = planning.count_images(plan, "images", images, out)
    if opened is not None and count:
        planning.image_size(plan, opened, images, out, resize, normalize)
        if psnr is not None:
            plan.check("d_eff", check_level, psnr, opened.t_max)
    planning.device(plan, device)
    batches = -(-count // batch_size)
    counted = f"{batches:,} {'batch' if batches == 1 else 'batches'} of at most {batch_size}"
    plan.add("work", f"one energy and its gradient for each image, {counted}")
    heat = ["maps/"] if maps else []
    return plan.writes(out, "scores.csv", "scores.json", "failures.csv", "sheet.png", *heat)


def ood(
    model: Model,
    *,
    inside: Annotated[
        Sequence[Path],
        "files and folders of images of the kind that the model was trained on, not among them",
        {"flag": "--in", "metavar": "IMAGES"},
    ],
    outside: Annotated[
        Sequence[Path], "files and folders of other images", {"flag": "--out", "metavar": "IMAGES"}
    ],
    results: Results = Path("ood"),
    psnr: Annotated[
        Sequence[float],
        "noise levels of the effective dimensions (default: 50 40 30 20 10 0)",
        {"metavar": "DB"},
    ] = (),
    resize: Resize = False,
    batch_size: BatchSize = 128,
    workers: Workers = WORKERS,
    device: Device = None,
    normalize: Normalize = False,
    dry_run: bool = False,
) -> Plan | None:
    """Tell images of another kind from images of the model's."""
    from dualscore.detection.detect_images import LEVELS, DetectOptions, check_sides, detect, results_hint

    levels = tuple(dict.fromkeys(psnr)) or LEVELS
    if not dry_run:
        from dualscore.devices import default_device

        options = DetectOptions(
            results=results,
            levels=levels,
            resize=resize,
            normalize=normalize,
            batch_size=batch_size,
            workers=max(0, workers),
            device=device or default_device(),
        )
        detect(model, inside, outside, options, shared_console())
        return None
    from dualscore.commands import planning
    from dualscore.scoring.scorer import DRAWS, check_level

    plan = Plan("ood")
    opened = planning.open_model(plan, model)
    count = planning.count_images(plan, "in", inside, results)
    count += planning.count_images(plan, "out", outside, results, results_hint())
    if not plan.problems:
        plan.check("sides", lambda: check_sides(inside, outside, results))
    if opened is not None and not plan.problems:
        planning.image_size(plan, opened, inside, results, resize, normalize)
        for level in levels:
            plan.check(f"{level:g} dB", check_level, level, opened.t_max)
    planning.device(plan, device)
    each = 1 + len(levels) * DRAWS
    plan.add("work", f"{each} network evaluations for each of {count:,} images")
    return plan.writes(results, "ood.csv", "ood.json", "failures.csv", "ood.png", "ood.pdf")


def _draw_options(
    out: Path,
    count: int,
    method: str,
    steps: int,
    seed: int,
    device: str | None,
    batch_size: int,
    resize: bool = False,
) -> "DrawOptions":
    """The options that drawing commands share, as the drawing takes them."""
    from dualscore.devices import default_device
    from dualscore.drawing.draw_images import DrawOptions
    from dualscore.sampling import Method

    return DrawOptions(
        out, count, Method(method), steps, seed, device or default_device(), batch_size, resize
    )


def sample(
    model: Model,
    *,
    count: Annotated[int, "samples (default: %(default)s)", {"type": positive}] = 16,
    method: Annotated[Literal["metropolis", "langevin", "flow"], "default: %(default)s"] = "metropolis",
    steps: Steps = 200,
    seed: Seed = 0,
    out: Results = Path("samples"),
    batch_size: BatchSize = 64,
    device: Device = None,
    dry_run: bool = False,
) -> Plan | None:
    """Draw images from a model."""
    from dualscore.drawing.draw_images import draw_samples

    options = _draw_options(out, count, method, steps, seed, device, batch_size)
    if dry_run:
        from dualscore.commands.planning import drawing

        return drawing("sample", model, None, options)
    draw_samples(model, options, shared_console())
    return None


def denoise(
    model: Model,
    images: ImageFiles,
    *,
    psnr: Annotated[float, "noise level (default: 20 dB)", {"metavar": "DB"}] = 20.0,
    resize: Resize = False,
    count: Count = 4,
    method: Sampler = "metropolis",
    steps: Steps = 100,
    seed: Seed = 0,
    out: Results = Path("denoised"),
    batch_size: BatchSize = 64,
    device: Device = None,
    dry_run: bool = False,
) -> Plan | None:
    """Add noise to images; draw what they may have been."""
    from dualscore.drawing.draw_images import draw_denoised, noise_variance

    options = _draw_options(out, count, method, steps, seed, device, batch_size, resize)
    if dry_run:
        from dualscore.commands.planning import drawing

        def look(opened: "ImageModel") -> str:
            return f"{psnr:g} dB, variance {noise_variance(opened, psnr):.3g} pixel²"

        return drawing("denoise", model, images, options, ("noise", look))
    draw_denoised(model, images, psnr, options, shared_console())
    return None


def inpaint(
    model: Model,
    images: ImageFiles,
    *,
    mask: Annotated[
        Path | None,
        "image that is white where pixels are missing (default: the middle, half as wide and high)",
    ] = None,
    resize: Resize = False,
    count: Count = 4,
    method: Sampler = "metropolis",
    steps: Steps = 200,
    seed: Seed = 0,
    out: Results = Path("inpainted"),
    batch_size: BatchSize = 64,
    device: Device = None,
    dry_run: bool = False,
) -> Plan | None:
    """Hide pixels of images; draw them given the others."""
    from dualscore.drawing.draw_images import draw_inpainted, known_pixels

    options = _draw_options(out, count, method, steps, seed, device, batch_size, resize)
    if dry_run:
        from dualscore.commands.planning import drawing

        def look(opened: "ImageModel") -> str:
            assert opened.image_shape is not None
            hidden = ~known_pixels(mask, *opened.image_shape[1:])
            return f"{mask or 'the middle'}: {int(hidden.sum())} of {hidden.numel()} pixels are hidden"

        return drawing("inpaint", model, images, options, ("mask", look))
    draw_inpainted(model, images, mask, options, shared_console())
    return None
