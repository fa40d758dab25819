"""The stages of an evaluation in their order, from the estimators that were asked for."""

from dualscore.errors import ConfigError
from dualscore.evaluation.yardsticks import YARDSTICKS
from dualscore.measuring.estimators import ESTIMATORS, normalizer_count, usable
from dualscore.measuring.identities import identity_stages
from dualscore.measuring.measured import PILOT_IMAGES, Extent, Grid, Measured
from dualscore.measuring.quantities import ends, noise_levels, noisy_energies, strata, true_energies
from dualscore.measuring.subject import Stage
from dualscore.noise import variance_at_psnr
from dualscore.settings.config import CHECKS, EvaluateConfig, ExperimentConfig

CHECKED_IMAGES = 48
"""Images for the checks whose figures are known well from few: heat equation, ranks of the noise level."""


def levels(options: EvaluateConfig) -> list[float]:
    """The noise variances that are reported, rising."""
    return sorted(variance_at_psnr(decibels) for decibels in options.psnr)


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
        mirror=options.mirror,
    )


def check_estimators(config: ExperimentConfig) -> None:
    """Refuse estimates and yardsticks that are not known, or that the images have none of: ConfigError."""
    wanted, known = config.evaluate.estimators, [*ESTIMATORS, CHECKS]
    if unknown := [name for name in wanted if name not in known]:
        listed = ", ".join(map(repr, unknown))
        raise ConfigError(f"evaluate.estimators: must be some of {', '.join(known)}, not {listed:.80}")
    if unknown := [name for name in config.evaluate.yardsticks if name not in YARDSTICKS]:
        listed = ", ".join(map(repr, unknown))
        raise ConfigError(f"evaluate.yardsticks: must be some of {', '.join(YARDSTICKS)}, not {listed:.80}")
    discrete = [name for name in wanted if name in ESTIMATORS and ESTIMATORS[name].discrete]
    if discrete and not config.data.quantized:
        raise ConfigError(
            f"evaluate.estimators: {' and '.join(discrete)} cannot be had with data.quantized=false: "
            "8-bit images are needed"
        )


def pilot_stages(measured: Measured, options: EvaluateConfig, extent: Extent) -> list[Stage]:
    """The pilot: stages that choose the bound's t0 and t1, on images that are not reported."""
    if "bound" not in options.estimators:
        return []
    grid, split = measured.grid, extent.chooser
    outer = [grid.edge(i) for i in grid.starts()], [grid.edge(i) for i in grid.stops()]
    return [
        strata(split, PILOT_IMAGES, grid.number, (0, grid.number), "pilot", extent.mirror),
        ends(split, PILOT_IMAGES, *outer, "pilot_ends", extent.mirror),
    ]


def stages(measured: Measured, options: EvaluateConfig, extent: Extent) -> list[Stage]:
    """The stages after the pilot: truth, log Z, estimates in their table's order, noise levels, checks."""
    subject, reported = measured.subject, extent.reported
    chosen = usable(options.estimators, measured)
    made = [true_energies(reported, extent.images)] if subject.density is not None else []
    if any(estimator.energy for estimator in chosen.values()) or checked(measured, options):
        made.append(
            noisy_energies([subject.t_range[1]], reported, normalizer_count(extent.images), "normalizer")
        )
    for estimator in chosen.values():
        made += estimator.stages(measured, extent)
    made.append(noise_levels(measured.levels, reported, extent.subset))
    if checked(measured, options):
        made += identity_stages(reported, extent.subset, min(CHECKED_IMAGES, extent.subset), measured)
    return made


def checked(measured: Measured, options: EvaluateConfig) -> bool:
    """Whether the energy's identities are checked."""
    return measured.subject.is_energy and CHECKS in options.estimators


def costs(config: ExperimentConfig, counts: dict[str, int], reported: str) -> list[tuple[str, str]]:
    """The cost of an evaluation, in words: pairs of an estimator and its network evaluations, in order.

    `counts` are the images in each split; {} where they are not known, or without end.
    """
    options = config.evaluate
    known = {split: counts.get(split, 10**9) for split in ("train", "val", "test")}
    found = extent(options, known, reported)
    grid = Grid(config.noise.t_min, config.noise.t_max, options.strata)
    pilot = min(PILOT_IMAGES, known[found.chooser], options.train_images)
    name = {"test": "test", "val": "validation"}[reported]
    chooser = {"train": "training", "val": "validation"}[found.chooser]
    few = min(CHECKED_IMAGES, found.subset)
    rows = {
        "paper": f"{found.images:,} {name} and {found.train_images:,} training images, once each",
        "dequantized": f"{found.images:,} images, {options.draws} times each",
        "bound": (
            f"{found.subset:,} images, at most {options.strata + 1} times each; {pilot:,} {chooser} images "
            f"before, {options.strata + len(grid.starts())} times each; as often for its certificate"
        ),
        "ode": f"{min(options.ode_images, found.images):,} images, some hundred times each",
        CHECKS: f"{found.subset:,} images, fifty times each, {few:,} more often, {options.chains} chains",
    }
    return [
        *((name, rows.get(name, "as its code says")) for name in options.estimators),
        ("noise levels", f"{found.subset:,} images, {len(options.psnr)} times each"),
    ]
