"""An evaluation from a checkpoint to evaluation.json."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dualscore.assemble import load_statistics
from dualscore.evaluation import content, evaluation_stages, yardsticks
from dualscore.evaluation.evaluation_report import print_figure, print_report, write_report
from dualscore.evaluation.open_checkpoint import Opened, open_checkpoint
from dualscore.files.archives import sha256
from dualscore.gaussian import StationaryGaussian
from dualscore.measuring import chain_figures
from dualscore.measuring.estimators import ESTIMATORS, label
from dualscore.measuring.measured import Grid, Measured, choose
from dualscore.settings.config import CHECKS, ExperimentConfig
from dualscore.terminal import quiet, shared_console


def is_complete(report: Path, checkpoint: Path) -> bool:
    """Whether an evaluation.json is there and tells of a finished evaluation of a checkpoint as it is now."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        return bool(found["complete"]) and found["checkpoint_sha256"] == sha256(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def evaluate(config: ExperimentConfig, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Measure a checkpoint and write evaluation.json, figure by figure; interrupted, it goes on.

    A finished report of the same checkpoint stays until the new one is finished, and estimates that only it
    has are made too: of what was measured they cost nothing. The images' own figures go into the folder
    `evaluation` beside the output. A DualscoreError is one line for people; what was measured before stays.
    """
    quiet()
    evaluation_stages.check_estimators(config)
    console = shared_console()
    finished = is_complete(output, checkpoint)
    if finished:
        config = _with_earlier(config, output)
    opened = open_checkpoint(config, checkpoint, output.parent / "evaluation", console)
    console.print(f"evaluating {checkpoint} …", soft_wrap=True)
    report = _opening(config, checkpoint, opened)
    measured = _measure(config, opened, report, None if finished else output)
    fabric = opened.session.fabric
    if fabric.is_global_zero:
        found = _yardsticks(config, opened, output.parent / "evaluation")
        report["yardsticks"] = {
            name: yardsticks.figure(yardstick, measured.photographs) for name, yardstick in found.items()
        }
        report["differences"] |= content.beside(measured, found)
        report["estimators"] = list(config.evaluate.estimators)
        report["complete"] = True
        write_report(report, output)
        print_report(report, label, console)
        console.print(f"written to {output}", soft_wrap=True)
    # A process that left while the first one still measures would be taken for a crash.
    fabric.barrier()
    return report


def _yardsticks(config: ExperimentConfig, opened: Opened, folder: Path) -> dict[str, yardsticks.Yardstick]:
    """What anybody gets within a minute, on the reported images."""
    datamodule, statistics = opened.session.datamodule, load_statistics(config)
    return yardsticks.measure_yardsticks(
        datamodule,
        StationaryGaussian(statistics.mean, statistics.spectrum).double(),
        config.data.channels,
        split=datamodule.reported,
        count=config.evaluate.images,
        seed=config.seed,
        folder=folder,
        console=opened.session.console,
        wanted=config.evaluate.yardsticks,
    )


def _opening(config: ExperimentConfig, checkpoint: Path, opened: Opened) -> dict[str, Any]:
    return {
        "experiment": config.name,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": opened.digest,
        "step": opened.step,
        "weights": "averaged" if config.optim.ema_steps else "trained",
        "complete": False,
        "dataset": content.dataset(opened.session.datamodule, config.data.channels),
        "image_shape": list(opened.image_shape),
        "dimension": math.prod(opened.image_shape),
    }


def _measure(
    config: ExperimentConfig, opened: Opened, report: dict[str, Any], output: Path | None
) -> Measured:
    """Run every stage in its order and fill the report from their rows; on the way the file too."""
    session, options = opened.session, config.evaluate
    measured = blank(opened, config)
    extent = evaluation_stages.extent(options, session.datamodule.counts, session.datamodule.reported)
    for stage in evaluation_stages.pilot_stages(measured, options, extent):
        measured.rows[stage.name] = session.run(stage)
    measured = with_span(measured)
    shown: set[str] = set()
    for stage in evaluation_stages.stages(measured, options, extent):
        measured.rows[stage.name] = session.run(stage)
        found = content.ready(measured, config, extent)
        if set(found) > shown and session.fabric.is_global_zero:
            report |= content.figures(measured, config, extent)
            for name in found:
                if name not in shown:
                    print_figure(ESTIMATORS[name].label, report["bits_per_dim"][name], session.console)
            shown = set(found)
            if output is not None:
                write_report(report, output)
    if evaluation_stages.checked(measured, options) and session.fabric.is_global_zero:
        subject, settings = session.subject, {"levels": chain_figures.schedule(measured)}
        if options.chains > 1:
            chains = partial(chain_figures.chain_rows, subject, settings["levels"])
            measured.rows["mass"] = session.rows("mass", options.chains, chains, settings)
        draws = partial(chain_figures.draw_rows, subject)
        measured.rows["anchor"] = session.rows("anchor", chain_figures.DRAWS, draws, {})
    report |= content.figures(measured, config, extent)
    return measured


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
    """The same with t0 and t1 chosen on the pilot's rows, if there are any."""
    rows = measured.rows
    if "pilot" not in rows:
        return measured
    return replace(
        measured, span=choose(measured.grid, rows["pilot"], rows["pilot_ends"], measured.dimension)
    )


def _with_earlier(config: ExperimentConfig, output: Path) -> ExperimentConfig:
    """The experiment with the estimators whose figures a finished report has."""
    report = json.loads(output.read_text(encoding="utf-8"))
    wanted = config.evaluate.estimators
    earlier = [e for e in (*ESTIMATORS, CHECKS) if e in report.get("estimators", []) and e not in wanted]
    return replace(config, evaluate=replace(config.evaluate, estimators=[*wanted, *earlier]))
