"""Commands that take images of any number: score, noise, measure, ood."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from dualscore.commands.options import (
    Device,
    Model,
    ModelAndImages,
    Results,
    Scoring,
    Streaming,
    positive,
    seed_number,
)
from dualscore.terminal.boxes import Plan
from dualscore.terminal.console import shared_console

PHOTOGRAPHS = (
    "Errors are over photographs. In a folder that holds sub-folders of images and no image itself, the "
    "images of a sub-folder are taken for those of one photograph; any other image is its own."
)


def score(
    words: ModelAndImages,
    *,
    out: Results = Path("scores"),
    psnr: Annotated[float | None, "effective dimension at this noise level", {"metavar": "DB"}] = None,
    maps: Annotated[bool, "no heat map of each image"] = True,
    bound: Annotated[
        int | None, "upper bounds too, by so many noise levels, such as 16 (photographs)", {"type": positive}
    ] = None,
    parquet: Annotated[bool, "rows to scores.parquet too (photographs)"] = False,
    part: Annotated[
        str | None, "of the images the K-th of N parts, as in a Slurm array (photographs)", {"metavar": "K/N"}
    ] = None,
    devices: Annotated[
        int, "processes, each on a device of its own (photographs; default: 1)", {"type": positive}
    ] = 1,
    scoring: Scoring = Scoring(),
    dry_run: bool = False,
) -> Plan | None:
    """How probable images are, and where they are not."""
    from dualscore.scoring.which_model import part_of, which

    chosen = scoring.chosen()
    streaming = {name: chosen[name] for name in ("batch_size", "workers", "device")}
    asked = which(words, out, resize=chosen["resize"], normalize=chosen["normalize"])
    if asked.any_size:
        from dualscore.scoring.several_devices import score_on_devices
        from dualscore.scoring.whole_photographs import ScoreOptions, score_photographs

        options = ScoreOptions(bound or 0, psnr, maps, parquet, part_of(part, devices), **streaming)
        if dry_run:
            from dualscore.commands import planning_photographs

            return Plan("score", planning_photographs.score_photographs(asked, out, options, devices))
        console = shared_console()
        if devices > 1:
            outcome = score_on_devices(asked.path, asked.images, out, console, options, devices)
        else:
            outcome = score_photographs(asked.path, asked.images, out, console, options, asked.model)
        console.results(outcome.report)
        return None
    asked.refuse(bound=bound, parquet=parquet, part=part, devices=None if devices == 1 else devices)
    plain: dict[str, Any] = {"psnr": psnr, "maps": maps, **chosen}
    assert asked.path is not None
    if dry_run:
        from dualscore.commands import planning

        return Plan("score", planning.score(asked.path, asked.images, out, plain))
    from dualscore.scoring import score_images

    found = score_images.score(asked.path, asked.images, out, shared_console(), model=asked.model, **plain)
    shared_console().results(found.report)
    return None


def noise(
    words: ModelAndImages,
    *,
    out: Results = Path("noise"),
    device: Device = None,
    dry_run: bool = False,
) -> Plan | None:
    """How noisy photographs are."""
    from dualscore.devices import default_device
    from dualscore.scoring.noise_of_files import noise_of_files
    from dualscore.scoring.which_model import which

    asked, where = which(words, out, resize=False, normalize=False), device or default_device()
    if dry_run:
        from dualscore.commands import planning_photographs

        return Plan("noise", planning_photographs.noise(asked, out, where))
    console = shared_console()
    console.results(noise_of_files(asked.path, asked.images, out, console, where, asked.model).report)
    return None


def measure(
    model: Annotated[
        str, "a run, an exported model, a folder that diffusers saved, or FILE.py:NAME, your own code"
    ],
    images: Annotated[Sequence[Path], "image files, folders of them, tars, and prepared data sets"],
    *,
    compare: Annotated[Sequence[str], "other models, on the same images", {"metavar": "MODEL"}] = (),
    out: Results = Path("measured"),
    count: Annotated[int | None, "images at most, 2 or more (default: all)", {"type": positive}] = None,
    label: Annotated[int | None, "the class that a model of diffusers is told of every image"] = None,
    strata: Annotated[
        int, "noise levels of the bound, of each image (default: %(default)s)", {"type": positive}
    ] = 32,
    ode_images: Annotated[
        int | None, "images, 2 or more, that are followed by the ODE (default: none)", {"type": positive}
    ] = None,
    seed: Annotated[int, "of all noise (default: %(default)s)", {"type": seed_number}] = 0,
    streaming: Streaming = Streaming(batch_size=64),
    dry_run: bool = False,
) -> Plan | None:
    """The likelihood of any denoiser."""
    from dualscore.scoring.measure_models import MeasureOptions, measure_models

    names = [model, *compare]
    options = MeasureOptions(
        count=count, label=label, strata=strata, ode_images=ode_images or 0, seed=seed, **streaming.chosen()
    )
    if dry_run:
        from dualscore.commands import planning

        return Plan("measure", planning.measure(names, images, out, options))
    shared_console().results(measure_models(names, images, out, shared_console(), options).report)
    return None


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
    scoring: Scoring = Scoring(),
    dry_run: bool = False,
) -> Plan | None:
    """Tell images of another kind from images of the model's."""
    from dualscore.scoring.detect_ood import LEVELS, detect

    options: dict[str, Any] = {"levels": list(dict.fromkeys(psnr)) or LEVELS, **scoring.chosen()}
    if dry_run:
        from dualscore.commands import planning

        return Plan("ood", planning.ood(model, inside, outside, results, options))
    shared_console().results(detect(model, inside, outside, results, shared_console(), **options).report)
    return None
