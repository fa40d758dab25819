"""Commands that take one model or run as a whole: figures, export, convert."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dualscore.commands.options import (
    WORKERS,
    BatchSize,
    Device,
    Licence,
    ModelOut,
    Resize,
    Workers,
    positive,
)
from dualscore.errors import CheckpointError
from dualscore.terminal import final, shared_console
from dualscore.terminal.boxes import Plan


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
        return _energy_histogram(
            run_folder,
            dimension,
            out or Path("figures"),
            bool(overrides or other or set(only) - {"3"}),
            dry_run,
        )
    from dualscore.figures import Request, check_names, draw_all

    out = out or run_folder / "figures"
    if not dry_run:
        draw_all(Request(run_folder, out, other, overrides), only, shared_console())
        return None
    from dualscore.commands import planning

    plan = Plan("figures")
    plan.check("figures", lambda: ", ".join(check_names(only)))
    for name, folder in (("run", run_folder), ("other", other)):
        if folder is not None:
            plan.check(name, planning.describe_run, folder, overrides)
            if not plan.problems:
                planning.open_model(plan, folder)
    plan.add("work", "what was measured before is not measured again; the rest takes minutes on the demo")
    return plan.writes(out, "pictures (.pdf, .png) and numbers (.json, .csv)")


def _energy_histogram(
    energies: Path, dimension: int | None, out: Path, needs_run: bool, dry_run: bool
) -> Plan | None:
    """Draw figure 3 from a file of energies; `needs_run` if more was asked for."""
    from dualscore.errors import FigureError
    from dualscore.figures.histogram import draw_energies

    def check() -> str:
        if not energies.is_file():
            raise FigureError(f"{energies}: no such file")
        if dimension is None:
            raise FigureError(f"{energies}: say of how many dimensions with --dimension (4096 for 1×64×64)")
        if needs_run:
            raise FigureError(
                f"{energies}: of energies alone there is figure 3, and neither settings nor --other"
            )
        return f"{energies}: energies of images of {dimension} dimensions"

    if dry_run:
        plan = Plan("figures").check("energies", check)
        return plan.writes(out, "figure3.pdf", "figure3.png", "figure3.json")
    check()
    assert dimension is not None
    for file in draw_energies(energies, dimension, out):
        final(shared_console(), f"written to {file}", soft_wrap=True)
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

    def check() -> str:
        if is_released(locate(model)):
            raise CheckpointError(f"{model}: a released checkpoint; use convert, which can estimate log Z")
        return str(locate(model))

    if not dry_run:
        from dualscore.publishing import save

        check()
        _report(save(model, out, licence), "; make evaluate …, then export again")
        return None
    from dualscore.commands import planning
    from dualscore.model_files.exported import check_folder
    from dualscore.publishing import add_evaluation

    plan = Plan("export").check("file", check)
    opened = planning.open_model(plan, model)
    if opened is not None:
        plan.check("evaluation", lambda: add_evaluation(opened, locate(model)))
    plan.check("folder", lambda: check_folder(out))
    return plan.writes(out, "model.safetensors", "README.md")


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
    resize: Resize = False,
    batch_size: BatchSize = 128,
    workers: Workers = WORKERS,
    device: Device = None,
    dry_run: bool = False,
) -> Plan | None:
    """Write a released checkpoint as a model, with its log Z."""
    from dualscore.devices import default_device
    from dualscore.publishing import check_released
    from dualscore.publishing import convert as convert_released

    if not dry_run:
        path, estimated = convert_released(
            released,
            images,
            out,
            shared_console(),
            normalizer=normalizer,
            licence=licence,
            resize=resize,
            batch_size=batch_size,
            workers=max(0, workers),
            device=device or default_device(),
        )
        for line in estimated:
            final(shared_console(), line, soft_wrap=True)
        _report(path)
        return None
    from dualscore.commands import planning
    from dualscore.model_files.exported import check_folder

    plan = Plan("convert").check("file", lambda: check_released(released))
    model = None if plan.problems else planning.open_model(plan, released)
    if images:
        count = planning.count_images(plan, "images", images, out)
        if model is not None and count:
            planning.image_size(plan, model, images, out, resize, normalize=True)
        plan.add("work", f"log Z from {count:,} images: two network evaluations for each")
    planning.device(plan, device)
    plan.check("folder", lambda: check_folder(out))
    return plan.writes(out, "model.safetensors", "README.md")


def _report(path: Path, hint: str = "") -> None:
    """Read a model back and print what is in it; `hint` says how to add an evaluation."""
    from dualscore.model_files.loading import load

    model = load(path)
    assert model.origin is not None
    missing = []
    if model.log_normalizer is None:
        missing.append("log Z, so no likelihoods")
    if model.origin.energies is None:
        missing.append("images to rank others among, so no percentiles")
    if model.origin.evaluation is None:
        missing.append(f"an evaluation{hint}")
    console = shared_console()
    final(console, f"{model.provenance}", soft_wrap=True)
    size = f"{path.stat().st_size / 2**20:.1f} MB"
    final(console, f"written to {path.parent}: {path.name} ({size}), README.md", soft_wrap=True)
    if missing:
        final(console, f"without {'; without '.join(missing)}", soft_wrap=True)
