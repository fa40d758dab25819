"""Commands of a model or a run: sample, denoise, inpaint, figures, export, convert."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dualscore.commands.options import (
    Conditional,
    Drawing,
    ImageFiles,
    Licence,
    Model,
    ModelOut,
    Streaming,
    positive,
)
from dualscore.errors import CheckpointError, FigureError
from dualscore.terminal.boxes import Plan, Row, writes
from dualscore.terminal.console import quiet, shared_console

if TYPE_CHECKING:
    from dualscore.model import ImageModel


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
    psnr: Annotated[
        float | None,
        "noise to add (default: none; they are noisy, and how much is found out)",
        {"metavar": "DB"},
    ] = None,
    mean: Annotated[bool, "the mean alone, in one evaluation, without samples"] = False,
    given: Conditional = Conditional(),
    drawing: Drawing = Drawing(out=Path("denoised"), steps=100),
    dry_run: bool = False,
) -> Plan | None:
    """Draw what noisy images may have been."""
    from dualscore.draw_images import draw_denoised, noise_variance
    from dualscore.likelihood.noise_level import EVALUATIONS

    options = drawing.options(0 if mean else given.count, given.method, given.resize)
    if dry_run:
        from dualscore.commands import planning

        def look(opened: "ImageModel") -> Row:
            if psnr is None:
                return "noise", f"what the images have: {EVALUATIONS} evaluations more of each"
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
