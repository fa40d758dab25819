r"""How strange an image is, and how well that tells images of another kind from a model's own.

Three scores, larger for stranger, the last two against reference images:

1. Bits/dim, −log p: strange is what is improbable.
2. Typicality: strange is what is more *or* less probable than the reference. Images of one kind differ
   widely in probability, and simpler ones of another kind are often the more probable.
3. The profile of effective dimensions: strange is what is denoised better or worse at some noise level than
   the reference is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from dualscore.errors import ScoreError
from dualscore.likelihood import Estimate
from dualscore.likelihood import mean as mean_of
from dualscore.scoring.scorer import share_higher

SCORES = {"log_p": "bits/dim", "typicality": "typicality", "profile": "d_eff profile"}
"""The scores, and their labels for people."""
CONFIDENCE = 0.95
_ROWS = 1024
"""Images compared with the whole reference at once."""


def reference_half(keys: Sequence[str]) -> Tensor:
    """Which images are the reference, bool, shape (n,): the half with the smaller checksums.

    So equal images are on one side, and neither names nor order matter.
    """
    rank = {key: number for number, key in enumerate(sorted(set(keys)))}
    return torch.tensor([2 * rank[key] < len(rank) for key in keys], dtype=torch.bool)


def typicality(bits: Tensor, reference: Tensor) -> Tensor:
    r"""−ln of the two-sided tail probability 2 min(F, 1 − F) of images' log p among the reference's, in nats.

    From bits/dim (B,) and those of the reference (n,), float64: scores ≥ 0, shape (B,). Nalisnick et al.
    2019, arXiv 1906.02994, take the distance |−log p − mean|, here of one image. A tail probability instead,
    because log p has a long tail towards simple images: the same distance is common on that side and very
    rare on the other. F is the reference's distribution function smoothed by a normal kernel (Azzalini 1981,
    Biometrika 68), so that scores also differ beyond the reference's extremes.
    """
    deviation = float(reference.std())
    low, high = np.quantile(reference.numpy(), (0.25, 0.75))
    # Azzalini's 1.3 σ n^(−1/3); the quartiles' σ, where that is smaller, is not stretched by a long tail.
    sigma = min(deviation, float(high - low) / 1.349) or deviation
    if not sigma > 0.0:
        raise ScoreError("--in: all reference images have the same probability; give different images")
    bandwidth = 1.3 * sigma * len(reference) ** (-1 / 3)
    tails = []
    for part in torch.split(bits, _ROWS):
        z = (part[:, None] - reference) / bandwidth
        below, above = (torch.special.log_ndtr(side).logsumexp(dim=1) for side in (z, -z))
        tails.append(torch.minimum(below, above))
    return (math.log(len(reference) / 2.0) - torch.cat(tails)).clamp(min=0.0)


def profile_distance(profile: Tensor, reference: Tensor) -> Tensor:
    r"""Mahalanobis distance of ln d_eff at K noise levels from the reference's mean, in standard deviations.

    From profiles (B, K) and (n, K), float64, shape (B,). One Gaussian over the logarithms (images differ by
    factors), with the correlations shrunk as Ledoit and Wolf 2004 (J. Multivariate Analysis 88), because of
    few reference images they are nearly singular. Errors of denoising at several noise levels are what Graham
    et al. 2023, arXiv 2211.07740, detect with; norms of the score at several levels, with a density fitted to
    them, Mahmood et al. 2021, arXiv 2010.13132.
    """
    logs = reference.log()
    mean, deviation = logs.mean(dim=0), logs.std(dim=0, correction=0)
    if not bool((deviation > 0.0).all()):
        raise ScoreError("--in: all reference images have the same profile; give different images")
    correlation, _ = shrunk_correlation((logs - mean) / deviation)
    z = (profile.log() - mean) / deviation
    factor = torch.linalg.cholesky(correlation)
    whitened: Tensor = torch.linalg.solve_triangular(factor, z.T, upper=False)
    return whitened.square().sum(dim=0).sqrt()


def shrunk_correlation(standardized: Tensor) -> tuple[Tensor, float]:
    """Ledoit and Wolf's correlation matrix (K, K) of standardized vectors (n, K), and its shrinkage s.

    The matrix is (1 − s) R + s I with R the empirical correlations and s in [0, 1].
    """
    count = len(standardized)
    empirical = standardized.T @ standardized / count
    eye = torch.eye(len(empirical), dtype=empirical.dtype)
    distance = float((empirical - eye).square().sum())
    # Σ_i ‖z_i z_iᵀ − R‖² = Σ_i ‖z_i‖⁴ − n ‖R‖²
    spread = float(standardized.square().sum(dim=1).square().sum() - count * empirical.square().sum())
    shrinkage = min(1.0, spread / count**2 / distance) if distance > 0.0 else 1.0
    return (1.0 - shrinkage) * empirical + shrinkage * eye, shrinkage


@dataclass(frozen=True)
class Area:
    """P(a strange image scores higher than a usual one) + ½ P(equal), and the limits of its interval."""

    auroc: float
    low: float | None  # None, as `high`, where one side has one photograph
    high: float | None


def area(inside: Tensor, outside: Tensor, photographs: tuple[Tensor, Tensor] | None = None) -> Area:
    """AUROC of scores (n,) and (m,), with a 95 % interval over `photographs` (n,) and (m,), or over images.

    The area is the mean over inside images of the share of outside images that score higher, and the other
    way round; the errors of both means, clustered by photograph, add up. The interval is symmetric on the
    scale of the logit, with Student's t of one degree less than the fewer photographs.
    Source: Obuchowski 1997, Nonparametric analysis of clustered ROC curve data, Biometrics 53(2); of images
    that are independent it is DeLong's variance.
    """
    mine, others = photographs or (None, None)
    found = mean_of(share_higher(inside, outside), mine)
    errors = found + mean_of(1.0 - share_higher(outside, inside), others)
    auroc = found.value
    if math.isnan(errors.stderr):
        return Area(auroc, None, None)
    if errors.stderr == 0.0 or not 0.0 < auroc < 1.0:
        return Area(auroc, auroc, auroc)
    odds = math.log(auroc / (1.0 - auroc))
    limits = Estimate(odds, errors.stderr / (auroc * (1.0 - auroc)), errors.groups).interval(CONFIDENCE)
    return Area(auroc, *(1.0 / (1.0 + math.exp(-limit)) for limit in limits))


def curve(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """The ROC curve: rates of false and of true alarms, of one shape, rising from 0 to 1."""
    values, rank = torch.unique(torch.cat([inside, outside]), return_inverse=True)
    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    # torchmetrics takes numbers beyond [0, 1] for logits, and rounds their sigmoid to single precision.
    scaled = rank.double() / max(1, len(values) - 1)
    false_rate, true_rate, _ = binary_roc(scaled, labels, validate_args=False)
    return false_rate, true_rate
