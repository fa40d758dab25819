"""Commands of a model or a run: score, measure, ood, sample, denoise, inpaint, figures, export, convert."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dualscore.commands.options import (
    Conditional,
    Drawing,
    ImageFiles,
    Licence,
    Model,
    ModelOut,
    Results,
    Scoring,
    Streaming,
    positive,
    seed_number,
)
from dualscore.errors import CheckpointError, FigureError
from dualscore.terminal.boxes import Plan, Row, writes
from dualscore.terminal.console import quiet, shared_console

if TYPE_CHECKING:
    from dualscore.model import ImageModel

PHOTOGRAPHS = (
    "Errors are over photographs. In a folder that holds sub-folders of images and no image itself, the "
    "images of a sub-folder are taken for those of one photograph; any other image is its own."
)


def score(
    images: Annotated[
        Sequence[Path],
        "a model, if it is not the one in the box, then image files, folders, tars and prepared data sets",
        {"metavar": "[MODEL] IMAGES"},
    ],
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
    asked = which(images, resize=chosen["resize"], normalize=chosen["normalize"])
    if asked.any_size:
        from dualscore.scoring.several_devices import score_on_devices
        from dualscore.scoring.whole_photographs import ScoreOptions, score_photographs

        options = ScoreOptions(bound or 0, psnr, maps, parquet, part_of(part, devices), **streaming)
        if dry_run:
            from dualscore.commands import planning

            return Plan("score", planning.score_photographs(asked, out, options, devices))
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


def sample(
    model: Model,
    *,
    count: Annotated[int, "samples (default: %(default)s)", {"type": positive}] = 16,
    method: Annotated[Literal["metropolis", "langevin", "flow"], "default: %(default)s"] = "metropolis",
    drawing: Drawing = Drawing(),
    dry_run: bool = False,
) -> Plan | None:
    """Draw images from a model."""
    from dualscore.draw_images import draw_samples

    options = drawing.options(count, method)
    if dry_run:
        from dualscore.commands import planning

        return Plan("sample", planning.draw(model, None, options))
    shared_console().results(draw_samples(model, options).report)
    return None


def denoise(
    model: Model,
    images: ImageFiles,
    *,
    psnr: Annotated[float, "noise level (default: 20 dB)", {"metavar": "DB"}] = 20.0,
    mean: Annotated[bool, "the mean alone, in one evaluation, without samples"] = False,
    given: Conditional = Conditional(),
    drawing: Drawing = Drawing(out=Path("denoised"), steps=100),
    dry_run: bool = False,
) -> Plan | None:
    """Add noise to images; draw what they may have been."""
    from dualscore.draw_images import draw_denoised, noise_variance

    options = drawing.options(0 if mean else given.count, given.method, given.resize)
    if dry_run:
        from dualscore.commands import planning

        def look(opened: "ImageModel") -> Row:
            return "noise", f"{psnr:g} dB, variance {noise_variance(opened, psnr):.3g} pixel²"

        return Plan("denoise", planning.draw(model, images, options, look, from_noise=False))
    shared_console().results(draw_denoised(model, images, psnr, options).report)
    return None


def inpaint(
    model: Model,
    images: ImageFiles,
    *,
    mask: Annotated[
        Path | None,
        "image that is white where pixels are missing (default: the middle, half as wide and high)",
    ] = None,
    given: Conditional = Conditional(),
    drawing: Drawing = Drawing(out=Path("inpainted")),
    dry_run: bool = False,
) -> Plan | None:
    """Hide pixels of images; draw them given the others."""
    from dualscore.draw_images import draw_inpainted, known_pixels

    options = drawing.options(given.count, given.method, given.resize)
    if dry_run:
        from dualscore.commands import planning

        def look(opened: "ImageModel") -> Row:
            assert opened.image_shape is not None
            hidden = ~known_pixels(mask, *opened.image_shape[1:])
            text = f"{mask or 'the middle'}: {int(hidden.sum())} of {hidden.numel()} pixels are hidden"
            return "mask", text

        return Plan("inpaint", planning.draw(model, images, options, look))
    shared_console().results(draw_inpainted(model, images, mask, options).report)
    return None


def figures(
    run_folder: Annotated[Path, "a run's folder, or a .npy file of energies in nats", {"metavar": "run"}],
    overrides: Annotated[
        list[str], "settings that win over the run's, as data.path=…", {"nargs": "*", "metavar": "key=value"}
    ],
    *,
    only: Annotated[
        Sequence[str], "table1, table2, 1, 2, 3, 4 or 5 (default: all)", {"metavar": "NUMBER"}
    ] = (),
    other: Annotated[Path | None, "a run on other images, for figure 2"] = None,
    out: Annotated[Path | None, "folder for the files (default: the run's folder figures)"] = None,
    dimension: Annotated[int | None, "d = C·H·W of the images of a .npy file", {"type": positive}] = None,
    dry_run: bool = False,
) -> Plan | None:
    """The paper's figures and tables of a run."""
    if run_folder.suffix == ".npy":
        if overrides or other or set(only) - {"3"}:
            raise FigureError(
                f"{run_folder}: of energies alone there is figure 3, and neither settings nor --other"
            )
        return _energy_histogram(run_folder, dimension, out or Path("figures"), dry_run)
    from dualscore.figures import draw_all
    from dualscore.figures.trained import Trained

    out, console = out or run_folder / "figures", shared_console()
    trained = Trained(run_folder, console, overrides, other)
    if dry_run:
        from dualscore.commands import planning

        return Plan("figures", planning.figures(trained, only, out))
    quiet()
    console.results(f"written to {file}" for file in draw_all(trained, only, out))
    return None


def _energy_histogram(energies: Path, dimension: int | None, out: Path, dry_run: bool) -> Plan | None:
    """Draw figure 3 from a file of energies."""
    from dualscore.figures import draw_energies

    if not energies.is_file():
        raise FigureError(f"{energies}: no such file")
    if dimension is None:
        raise FigureError(f"{energies}: say of how many dimensions with --dimension (4096 for 1×64×64)")
    if dry_run:
        found = "energies", f"{energies}: energies of images of {dimension} dimensions"
        return Plan("figures", [found, writes(out, "figure3.pdf", "figure3.png", "figure3.json")])
    files = draw_energies(energies, dimension, out)
    shared_console().results(f"written to {file}" for file in files)
    return None


def export(
    model: Annotated[Path, "a run's folder for its best checkpoint, or a checkpoint"],
    *,
    out: ModelOut = Path("model"),
    licence: Licence = "",
    dry_run: bool = False,
) -> Plan | None:
    """Write a model that needs neither its run nor its data."""
    from dualscore.model_files.loading import is_released, locate
    from dualscore.publishing import save

    if is_released(locate(model)):
        raise CheckpointError(f"{model}: a released checkpoint; use convert, which can estimate log Z")
    if dry_run:
        from dualscore.commands import planning

        return Plan("export", planning.export(model, out))
    _report(save(model, out, licence), "; make evaluate …, then export again")
    return None


def convert(
    released: Annotated[Path, "a checkpoint in the paper's format (.pth.tar)"],
    *,
    images: Annotated[
        Sequence[Path],
        "files and folders that log Z is estimated on: a few hundred images of one size",
        {"exclusive": True},
    ] = (),
    normalizer: Annotated[bool, "leave log Z unknown: energies only", {"exclusive": True}] = True,
    out: ModelOut = Path("converted"),
    licence: Licence = "",
    streaming: Streaming = Streaming(),
    dry_run: bool = False,
) -> Plan | None:
    """Write a released checkpoint as a model, with its log Z."""
    from dualscore import publishing

    chosen, console = streaming.chosen(), shared_console()
    if dry_run:
        from dualscore.commands import planning

        rows = planning.convert(released, images, out, streaming.resize, chosen["device"])
        return Plan("convert", rows)
    path, estimated = publishing.convert(
        released, images, out, console, normalizer=normalizer, licence=licence, **chosen
    )
    console.results(estimated)
    _report(path)
    return None


def _report(path: Path, hint: str = "") -> None:
    """Read a model back and print what is in it; `hint` says how to add an evaluation."""
    from dualscore.model_files.loading import load

    model = load(path)
    assert model.origin is not None
    size = f"{path.stat().st_size / 2**20:.1f} MB"
    lines = [model.provenance, f"written to {path.parent}: {path.name} ({size}), README.md"]
    missing = {
        "log Z, so no likelihoods": model.log_normalizer,
        "images to rank others among, so no percentiles": model.origin.energies,
        f"an evaluation{hint}": model.origin.evaluation,
    }
    if absent := [name for name, content in missing.items() if content is None]:
        lines.append(f"without {'; without '.join(absent)}")
    shared_console().results(lines)
