"""An evaluation from a checkpoint to evaluation.json: what is measured, in what order, and at what cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dualscore.assemble import load_statistics
from dualscore.data.loader import deaths_told
from dualscore.errors import ConfigError
from dualscore.evaluation.evaluation_report import beside, figures, is_complete, opening, write_report
from dualscore.evaluation.session import Session, open_checkpoint
from dualscore.evaluation.yardsticks import YARDSTICKS, Yardstick, measure_yardsticks
from dualscore.files.typed_json import read_json
from dualscore.gaussian import StationaryGaussian
from dualscore.measuring.estimators import ESTIMATORS, label, normalizer_stage, pilot_stages, ready, usable
from dualscore.measuring.measured import PILOT_IMAGES, Extent, Grid, Measured
from dualscore.measuring.quantities import identity_stages, noise_levels, true_energies
from dualscore.measuring.row_figures import estimate_of
from dualscore.measuring.subject import KINDS, Stage
from dualscore.settings.config import CHECKS, EvaluateConfig, ExperimentConfig

CHECKED_IMAGES = 48
"""Images for the checks whose figures are known well from few: heat equation, ranks of the noise level."""


def extent(options: EvaluateConfig, counts: dict[str, int], reported: str) -> Extent:
    """The number of images for each purpose, given the `counts` in each split.

    Where the validation split is reported, which chose the checkpoint, training images choose what is left to
    be chosen.
    """
    images = min(options.images, counts[reported])
    return Extent(
        reported=reported,
        chooser="train" if reported == "val" else "val",
        images=images,
        subset=min(options.subset_images, images),
        train_images=min(options.train_images, counts["train"]),
        ode_images=options.ode_images,
        draws=options.draws,
        ode_tolerance=options.ode_tolerance,
        chains=options.chains,
        mirror=options.mirror,
    )


def check_estimators(config: ExperimentConfig) -> None:
    """Refuse estimates and yardsticks that are not known, or that the images have none of: ConfigError."""
    options = config.evaluate
    for key, wanted, known in (
        ("estimators", options.estimators, [*ESTIMATORS, CHECKS]),
        ("yardsticks", options.yardsticks, YARDSTICKS),
    ):
        if unknown := ", ".join(repr(name) for name in wanted if name not in known):
            raise ConfigError(f"evaluate.{key}: must be some of {', '.join(known)}, not {unknown:.80}")
    discrete = [name for name in options.estimators if name != CHECKS and ESTIMATORS[name].discrete]
    if discrete and not config.data.quantized:
        raise ConfigError(
            f"evaluate.estimators: {' and '.join(discrete)} cannot be had with data.quantized=false: "
            "8-bit images are needed"
        )


def stages(measured: Measured, options: EvaluateConfig, extent: Extent) -> list[Stage]:
    """The stages after the pilot: truth, log Z, estimates in their table's order, noise levels, checks."""
    images, chosen = (extent.reported, extent.images), usable(options.estimators, measured)
    checked = measured.subject.is_energy and CHECKS in options.estimators
    made = [Stage("truth", *images, true_energies)] if measured.subject.density is not None else []
    if checked or any(estimator.energy for estimator in chosen.values()):
        made.append(normalizer_stage(measured.subject, *images))
    for estimator in chosen.values():
        made += estimator.stages(measured, extent)
    made.append(noise_levels(measured.levels, extent.reported, extent.subset))
    if checked:
        few = min(CHECKED_IMAGES, extent.subset)
        made += identity_stages(extent.reported, extent.subset, few, extent.chains, measured)
    return made


@deaths_told()
def evaluate(config: ExperimentConfig, checkpoint: Path, output: Path, console: Console) -> dict[str, Any]:
    """Measure a checkpoint and write evaluation.json, figure by figure; interrupted, it goes on.

    The order: the pilot's stages and the others, which give rows, kept in the folder `evaluation` beside the
    output; figures of all rows; yardsticks; the report, which is returned. A finished report of the same
    checkpoint stays until the new one is finished, and estimates that only it has are made too: of what was
    measured they cost nothing. A DualscoreError is one line for people.
    """
    check_estimators(config)
    finished, folder = is_complete(output, checkpoint), output.parent / "evaluation"
    if finished:
        config = _with_earlier(config, output)
    session, options = open_checkpoint(config, checkpoint, folder, console), config.evaluate
    speaks = session.fabric.is_global_zero  # one process prints and writes for all
    console.print(f"evaluating {checkpoint} …", soft_wrap=True)
    report, measured = opening(config, checkpoint, session), session.blank()
    numbers = extent(options, session.datamodule.counts, session.reported)
    if "bound" in options.estimators:
        measured.rows.update({stage.name: session.run(stage) for stage in pilot_stages(measured, numbers)})
        measured = measured.with_span()
    shown: set[str] = set()
    for stage in stages(measured, options, numbers):
        measured.rows[stage.name] = session.run(stage)
        new = [name for name in ready(options.estimators, measured, numbers) if name not in shown]
        if new and speaks:
            report |= figures(measured, config, numbers)
            for name in new:
                figure = report["bits_per_dim"][name]
                cost = f"{figure['images']:,} images, {figure['evaluations']:,} network evaluations"
                console.print(f"{label(name):18} {estimate_of(figure)} bits/dim · {cost}", soft_wrap=True)
            if not finished:
                write_report(report, output)
        shown.update(new)
    report |= figures(measured, config, numbers)
    if speaks:
        found = _yardsticks(config, session)
        report["yardsticks"] = {name: y.figure(measured.photographs) for name, y in found.items()}
        report["differences"] |= beside(measured, found)
        report["estimators"] = list(options.estimators)
        report["complete"] = True
        write_report(report, output)
    # A process that left while the first one still measures would be taken for a crash.
    session.fabric.barrier()
    return report


def _yardsticks(config: ExperimentConfig, session: Session) -> dict[str, Yardstick]:
    """Measure the yardsticks on the reported images."""
    statistics = load_statistics(config)
    return measure_yardsticks(
        session.datamodule,
        StationaryGaussian(statistics.mean, statistics.spectrum).double(),
        split=session.reported,
        count=config.evaluate.images,
        seed=config.seed,
        folder=session.folder,
        console=session.console,
        wanted=config.evaluate.yardsticks,
    )


def _with_earlier(config: ExperimentConfig, output: Path) -> ExperimentConfig:
    """The experiment with the estimators whose figures a finished report has."""
    wanted, found = config.evaluate.estimators, read_json(output).get("estimators", [])
    earlier = [e for e in (*ESTIMATORS, CHECKS) if e in found and e not in wanted]
    return replace(config, evaluate=replace(config.evaluate, estimators=[*wanted, *earlier]))


def costs(config: ExperimentConfig, counts: dict[str, int], reported: str) -> list[tuple[str, str]]:
    """The cost of an evaluation, in words: pairs of an estimator and its network evaluations, in order.

    `counts` are the images in each split; {} where they are not known, or without end.
    """
    options, known = config.evaluate, {split: counts.get(split, 10**9) for split in KINDS}
    e = extent(options, known, reported)
    starts = len(Grid(config.noise.t_min, config.noise.t_max, options.strata).starts())
    pilot = min(PILOT_IMAGES, known[e.chooser], options.train_images)
    rows = {
        "paper": f"{e.images:,} {KINDS[reported]} and {e.train_images:,} training images, once each",
        "dequantized": f"{e.images:,} images, {e.draws} times each",
        "bound": (
            f"{e.subset:,} images, at most {options.strata + 1} times each; {pilot:,} {KINDS[e.chooser]} "
            f"images before, {options.strata + starts} times each; as often for its certificate"
        ),
        "ode": f"{min(e.ode_images, e.images):,} images, some hundred times each",
        CHECKS: (
            f"{e.subset:,} images, fifty times each, {min(CHECKED_IMAGES, e.subset):,} more often, "
            f"{e.chains} chains"
        ),
    }
    told = [(name, rows.get(name, "as its code says")) for name in options.estimators]
    return [*told, ("noise levels", f"{e.subset:,} images, {len(options.psnr)} times each")]
