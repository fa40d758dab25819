"""An evaluation from a checkpoint to evaluation.json."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dualscore.assemble import load_statistics
from dualscore.evaluation import content, evaluation_stages, yardsticks
from dualscore.evaluation.evaluation_report import print_figure, print_report, write_report
from dualscore.evaluation.open_checkpoint import Opened, open_checkpoint
from dualscore.evaluation.session import Session
from dualscore.files.aside import sha256
from dualscore.gaussian import StationaryGaussian
from dualscore.measuring import chain_figures
from dualscore.measuring.estimators import ESTIMATORS
from dualscore.measuring.measured import Extent, Grid, Measured, choose
from dualscore.measuring.subject import Rows
from dualscore.settings.config import CHECKS, ExperimentConfig
from dualscore.terminal.console import quiet, shared_console


def is_complete(report: Path, checkpoint: Path) -> bool:
    """Whether evaluation.json exists and is a finished evaluation of exactly this checkpoint."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        return bool(found["complete"]) and found["checkpoint_sha256"] == sha256(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def evaluate(config: ExperimentConfig, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Measure a checkpoint and write evaluation.json, figure by figure; interrupted, it goes on.

    The order: stages, which give rows, one an image, kept in the folder `evaluation` beside the output;
    chains, which give rows of their own; figures of all rows; yardsticks; the report. A finished report of
    the same checkpoint stays until the new one is finished, and estimates that only it has are made too: of
    what was measured they cost nothing. A DualscoreError is one line for people.
    """
    quiet()
    evaluation_stages.check_estimators(config)
    console, folder = shared_console(), output.parent / "evaluation"
    finished = is_complete(output, checkpoint)
    if finished:
        config = _with_earlier(config, output)
    opened = open_checkpoint(config, checkpoint, folder, console)
    session, options = opened.session, config.evaluate
    speaks = session.fabric.is_global_zero  # one process prints and writes for all
    console.print(f"evaluating {checkpoint} …", soft_wrap=True)
    report, measured = _opening(config, checkpoint, opened), blank(opened, config)
    extent = evaluation_stages.extent(options, session.datamodule.counts, session.datamodule.reported)
    for stage in evaluation_stages.pilot_stages(measured, options, extent):
        measured.rows[stage.name] = session.run(stage)
    measured = with_span(measured)
    for stage in evaluation_stages.stages(measured, options, extent):
        measured.rows[stage.name] = session.run(stage)
        if speaks and _show_new(measured, config, extent, report, console) and not finished:
            write_report(report, output)
    if speaks and evaluation_stages.checked(measured, options):
        measured.rows.update(_chains(session, measured))
    report |= content.figures(measured, config, extent)
    if speaks:
        found = _yardsticks(config, session, folder)
        report["yardsticks"] = {name: yardsticks.figure(y, measured.photographs) for name, y in found.items()}
        report["differences"] |= content.beside(measured, found)
        report["estimators"] = list(options.estimators)
        report["complete"] = True
        write_report(report, output)
        print_report(report, console)
        console.print(f"written to {output}", soft_wrap=True)
    # A process that left while the first one still measures would be taken for a crash.
    session.fabric.barrier()
    return report


def _opening(config: ExperimentConfig, checkpoint: Path, opened: Opened) -> dict[str, Any]:
    """The report's head: the checkpoint and the images."""
    data = opened.session.datamodule
    return {
        "experiment": config.name,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": opened.digest,
        "step": opened.step,
        "weights": "averaged" if config.optim.ema_steps else "trained",
        "complete": False,
        "dataset": {
            "name": data.dataset,
            "release": data.release,
            "path": str(data.path) if data.path else None,
            "split": data.reported,
            "chosen_on": "val",
            "colour": "gray" if config.data.channels == 1 else "colour",
        },
        "image_shape": list(opened.image_shape),
        "dimension": math.prod(opened.image_shape),
    }


def _show_new(
    measured: Measured, config: ExperimentConfig, extent: Extent, report: dict[str, Any], console: Console
) -> bool:
    """Put all figures into the report and print new estimates, where the rows of one are newly there."""
    ready, shown = content.ready(measured, config, extent), set(report.get("bits_per_dim", {}))
    if not set(ready) > shown:
        return False
    report |= content.figures(measured, config, extent)
    for name in ready:
        if name not in shown:
            print_figure(ESTIMATORS[name].label, report["bits_per_dim"][name], console)
    return True


def _chains(session: Session, measured: Measured) -> dict[str, Rows]:
    """Rows of annealed chains, and of draws from the Gaussian: what the energy integrates to."""
    subject, levels, chains = measured.subject, chain_figures.schedule(measured), session.options.chains
    weigh = partial(chain_figures.chain_rows, subject, levels)
    draw = partial(chain_figures.draw_rows, subject)
    found = {"mass": session.rows("mass", chains, weigh, {"levels": levels})} if chains > 1 else {}
    return found | {"anchor": session.rows("anchor", chain_figures.DRAWS, draw, {})}


def _yardsticks(config: ExperimentConfig, session: Session, folder: Path) -> dict[str, yardsticks.Yardstick]:
    """Measure the yardsticks on the reported images."""
    statistics = load_statistics(config)
    return yardsticks.measure_yardsticks(
        session.datamodule,
        StationaryGaussian(statistics.mean, statistics.spectrum).double(),
        config.data.channels,
        split=session.datamodule.reported,
        count=config.evaluate.images,
        seed=config.seed,
        folder=folder,
        console=session.console,
        wanted=config.evaluate.yardsticks,
    )


def blank(opened: Opened, config: ExperimentConfig) -> Measured:
    """A measurement of a checkpoint without rows."""
    subject, datamodule = opened.session.subject, opened.session.datamodule
    return Measured(
        subject=subject,
        dimension=math.prod(opened.image_shape),
        grid=Grid(*subject.t_range, config.evaluate.strata),
        levels=evaluation_stages.levels(config.evaluate),
        photographs=partial(datamodule.photographs, datamodule.reported),
        of_training=partial(datamodule.photographs, "train"),
    )


def with_span(measured: Measured) -> Measured:
    """The measurement with t0 and t1 chosen on the pilot's rows, if there are any."""
    rows = measured.rows
    if "pilot" not in rows:
        return measured
    span = choose(measured.grid, rows["pilot"], rows["pilot_ends"], measured.dimension)
    return replace(measured, span=span)


def _with_earlier(config: ExperimentConfig, output: Path) -> ExperimentConfig:
    """The experiment with the estimators whose figures a finished report has."""
    report = json.loads(output.read_text(encoding="utf-8"))
    wanted = config.evaluate.estimators
    earlier = [e for e in (*ESTIMATORS, CHECKS) if e in report.get("estimators", []) and e not in wanted]
    return replace(config, evaluate=replace(config.evaluate, estimators=[*wanted, *earlier]))
