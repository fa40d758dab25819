"""Which stages an evaluation has: from the estimators that were asked for."""

import math

from dualscore.config import Estimator, EvaluateConfig
from dualscore.evaluation.stages import (
    Stage,
    Subject,
    clean_energies,
    dequantized_energies,
    noise_levels,
    noisy_energies,
    ode_energies,
    true_energies,
)
from dualscore.likelihood import bits
from dualscore.likelihood.consistency import TOLERANCE, entropy_doubt
from dualscore.noise import GOLDEN_RATIO, variance_at_psnr

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


def simple_stages(
    options: EvaluateConfig,
    counts: dict[str, int],
    *,
    is_energy: bool,
    quantized: bool,
    known: bool,
    large: list[float],
) -> dict[str, Stage]:
    """Every stage but the bound's, which depend on what a pilot finds.

    Args:
        options: estimators, images, levels.
        counts: images in each split.
        is_energy: False for a denoiser, of which only bound and ODE can be had.
        quantized: whether images are 8-bit.
        known: whether the images' density is known.
        large: noise variances that log Z is looked at, rising; the last one is what it is taken at.

    Returns:
        Stages by name, the cheap ones first.
    """
    wanted = set(options.estimators)
    val, train = min(options.images, counts["val"]), min(options.train_images, counts["train"])
    stages = []
    if known:
        stages.append(true_energies(val))
    check = is_energy and Estimator.checks in wanted
    if is_energy and wanted & {Estimator.paper, Estimator.dequantized, Estimator.checks}:
        variances = large if check else large[-1:]
        stages.append(noisy_energies(variances, normalizer_count(val), "normalizer"))
    if is_energy and Estimator.paper in wanted:
        stages.append(clean_energies("val", val, "paper"))
        stages.append(noisy_energies(large[-1:], normalizer_count(train), "train_normalizer", "train"))
        stages.append(clean_energies("train", train, "train_paper"))
    if is_energy and quantized and Estimator.dequantized in wanted:
        stages.append(dequantized_energies(val, options.draws))
    stages.append(noise_levels(levels(options), subset(options, counts), heat=check))
    if Estimator.ode in wanted:
        stages.append(ode_energies(min(options.ode_images, val), options.ode_tolerance))
    return {stage.name: stage for stage in stages}
