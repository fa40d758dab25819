"""Which stages an evaluation has: from the estimators that were asked for."""

import math

from dualscore.evaluation.bound import PILOT_IMAGES, Grid
from dualscore.evaluation.stages import (
    Stage,
    Subject,
    clean_energies,
    noise_levels,
    noisy_energies,
    true_energies,
)
from dualscore.likelihood import bits
from dualscore.likelihood.consistency import TOLERANCE, entropy_doubt
from dualscore.noise import GOLDEN_RATIO, variance_at_psnr
from dualscore.settings.config import CHECKS, EvaluateConfig, ExperimentConfig

FEWEST_FOR_NORMALIZER = 64
NORMALIZER_SHARE = 16
"""Log Z is estimated on one image in this many: its noise is far below that of U(x, 0)."""


def nested_choice(total: int, count: int) -> frozenset[int]:
    """`count` of `total` ordinals, spread evenly, and a part of every larger choice.

    Those whose multiples of the golden ratio have the smallest fractional parts.

    Args:
        total: how many there are.
        count: how many are wanted.

    Returns:
        Ordinals below `total`.
    """
    return frozenset(sorted(range(total), key=lambda j: (j + 1) * GOLDEN_RATIO % 1.0)[:count])


def normalizer_count(images: int) -> int:
    """Images that log Z is estimated on."""
    return min(images, max(FEWEST_FOR_NORMALIZER, images // NORMALIZER_SHARE))


def levels(options: EvaluateConfig) -> list[float]:
    """The noise variances that are reported, rising."""
    return sorted(variance_at_psnr(decibels) for decibels in options.psnr)


def large_variances(t_max: float) -> list[float]:
    """Where log Z may be looked at for its drift, rising: over two decades up to t_max."""
    return [t_max / 100.0, t_max / 10.0, t_max / math.sqrt(10.0), t_max]


def reported_variances(subject: Subject, dimension: int) -> list[float]:
    """Where log Z is compared, rising; the last is t_max, where it is taken.

    Args:
        subject: what is measured.
        dimension: d.

    Returns:
        Of `large_variances`, t_max and those at which the entropy is known well enough.
    """
    t_max = subject.t_range[1]
    return [
        t
        for t in large_variances(t_max)
        if t == t_max or bits(entropy_doubt(subject.prior, t), dimension) < TOLERANCE
    ]


def subset(options: EvaluateConfig, counts: dict[str, int]) -> int:
    """Validation images for all that costs tens of evaluations."""
    return min(options.subset_images, options.images, counts["val"])


def shared_stages(
    options: EvaluateConfig,
    counts: dict[str, int],
    *,
    is_energy: bool,
    energies: bool,
    known: bool,
    large: list[float],
) -> dict[str, Stage]:
    """The stages that several figures are made of; further ones are an estimator's own.

    Args:
        options: estimators, images, levels.
        counts: images in each split.
        is_energy: False for a denoiser, which has no energies.
        energies: whether an estimate is of normalized energies.
        known: whether the images' density is known.
        large: noise variances that log Z is looked at, rising; the last one is what it is taken at.

    Returns:
        Stages by name, the cheap ones first.
    """
    val, train = min(options.images, counts["val"]), min(options.train_images, counts["train"])
    stages = []
    if known:
        stages.append(true_energies(val))
    check = is_energy and CHECKS in options.estimators
    if is_energy and (energies or check):
        variances = large if check else large[-1:]
        stages.append(noisy_energies(variances, normalizer_count(val), "normalizer"))
    if is_energy and "paper" in options.estimators:
        stages.append(clean_energies("val", val, "paper"))
        stages.append(noisy_energies(large[-1:], normalizer_count(train), "train_normalizer", "train"))
        stages.append(clean_energies("train", train, "train_paper"))
    stages.append(noise_levels(levels(options), subset(options, counts), heat=check))
    return {stage.name: stage for stage in stages}


def costs(config: ExperimentConfig, counts: dict[str, int]) -> list[tuple[str, str]]:
    """What an evaluation costs, for people: pairs of an estimator and its network evaluations.

    Args:
        config: the experiment.
        counts: images in each split; {} where they are not known, or without end.

    Returns:
        A row an estimator, in the order in which they are measured.
    """
    options = config.evaluate
    known = {split: counts.get(split, 10**9) for split in ("train", "val")}
    val, train = min(options.images, known["val"]), min(options.train_images, known["train"])
    some, levels_ = subset(options, known), len(options.psnr)
    grid = Grid(config.noise.t_min, config.noise.t_max, options.strata)
    pilot = min(PILOT_IMAGES, train)
    doubled = ", each with second derivatives" if CHECKS in options.estimators else ""
    rows = {
        "paper": f"{val:,} validation and {train:,} training images, once each",
        "dequantized": f"{val:,} images, {options.draws} times each",
        "bound": (
            f"{some:,} images, at most {options.strata + 1} times each; {pilot:,} training images before, "
            f"{options.strata + len(grid.starts())} times each"
        ),
        "ode": f"{min(options.ode_images, val):,} images, some hundred times each",
        CHECKS: f"{some:,} images, {options.strata} times each",
    }
    return [
        *((name, rows.get(name, "as its code says")) for name in options.estimators),
        ("noise levels", f"{some:,} images, {levels_} times each{doubled}"),
    ]
