"""dualscore export."""

import argparse
from pathlib import Path

from dualscore.commands.options import Commands
from dualscore.errors import CheckpointError
from dualscore.terminal import final, shared_console
from dualscore.terminal.dry import Plan


def add(commands: Commands) -> None:
    """Add the command."""
    export = commands.add_parser("export", help="write a model that needs neither its run nor its data")
    export.add_argument("model", type=Path, help="a run's folder for its best checkpoint, or a checkpoint")
    add_output(export, "model")
    export.set_defaults(run=_run, plan=_plan)


def add_output(command: argparse.ArgumentParser, out: str) -> None:
    """Where a model goes, and under which terms."""
    command.add_argument("--out", type=Path, default=Path(out), help=f"folder for it (default: {out})")
    command.add_argument("--licence", default="", metavar="TEXT", help="the weights' terms, for the card")


def _run(arguments: argparse.Namespace) -> None:
    from dualscore.publishing.save_model import save

    _own(arguments.model)
    report(save(arguments.model, arguments.out, arguments.licence), "; make evaluate …, then export again")


def _plan(arguments: argparse.Namespace) -> Plan:
    from dualscore.commands import planning
    from dualscore.model_files.exported import check_folder
    from dualscore.model_files.loading import locate
    from dualscore.publishing.save_model import describe

    plan = Plan("export")
    plan.check("file", lambda: _own(arguments.model))
    model = planning.open_model(plan, arguments.model)
    if model is not None:
        plan.check("evaluation", lambda: describe(model, locate(arguments.model)))
    plan.check("folder", lambda: check_folder(arguments.out))
    return plan.writes(arguments.out, "model.safetensors", "README.md")


def _own(path: Path) -> str:
    """Refuse a released checkpoint; returns what is exported."""
    from dualscore.model_files.loading import is_released, locate

    if is_released(locate(path)):
        raise CheckpointError(f"{path}: a released checkpoint; use convert, which can estimate log Z")
    return str(locate(path))


def report(path: Path, hint: str = "") -> None:
    """Read a model back and say what is in it.

    Args:
        path: the file.
        hint: how an evaluation would come into it.
    """
    from dualscore.model_files.loading import load

    model = load(path)
    assert model.origin is not None
    energies = model.origin.energies
    missing = []
    if model.log_normalizer is None:
        missing.append("log Z, so no likelihoods")
    if energies is None:
        missing.append("images to rank others among, so no percentiles")
    if model.origin.evaluation is None:
        missing.append(f"an evaluation{hint}")
    console = shared_console()
    for line in (
        f"{model.provenance}",
        f"written to {path.parent}: {path.name} ({path.stat().st_size / 2**20:.1f} MB), README.md",
        *([f"without {'; without '.join(missing)}"] if missing else []),
    ):
        final(console, line, soft_wrap=True)
