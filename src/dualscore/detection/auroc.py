"""Area under the ROC curve, with an interval over the photographs of each side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_roc

from dualscore.likelihood import Estimate, mean
from dualscore.scoring.scorer import share_higher

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Area:
    """P(a strange image scores higher than a usual one) + ½ P(equal), and the limits of its interval."""

    auroc: float
    low: float | None
    high: float | None
    """Both None where one side has one photograph."""


def _ranks(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as ranks in [0, 1], equal ones equal, and the labels: 1 is outside.

    torchmetrics takes numbers beyond [0, 1] for logits, and their sigmoid in single precision makes all
    scores beyond about 17 equal.
    """
    values, rank = torch.unique(torch.cat([inside, outside]), return_inverse=True)
    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    return rank.double() / max(1, len(values) - 1), labels


def numbered(photographs: Sequence[str]) -> Tensor:
    """Photographs as 0, 1, … in the order in which they come, one an image, shape (n,)."""
    number: dict[str, int] = {}
    return torch.tensor([number.setdefault(name, len(number)) for name in photographs])


def area(inside: Tensor, outside: Tensor, photographs: tuple[Tensor, Tensor] | None = None) -> Area:
    """AUROC of scores (n,) and (m,), with a 95 % interval over `photographs` (n,) and (m,), or over images.

    The area is the mean over inside images of the share of outside images that score higher, and the other
    way round; the errors of both means, clustered by photograph, add up. The interval is symmetric on the
    scale of the logit, with Student's t of one degree less than the fewer photographs.
    Source: Obuchowski 1997, Nonparametric analysis of clustered ROC curve data, Biometrics 53(2); of images
    that are independent it is DeLong's variance.
    """
    ranks, labels = _ranks(inside, outside)
    found = float(binary_auroc(ranks, labels, validate_args=False))
    mine, others = photographs or (torch.arange(len(inside)), torch.arange(len(outside)))
    if min(len(torch.unique(mine)), len(torch.unique(others))) == 1:
        return Area(found, None, None)
    low, high = ranks[: len(inside)], ranks[len(inside) :]
    errors = mean(share_higher(low, high), mine) + mean(1.0 - share_higher(high, low), others)
    if errors.stderr == 0.0 or not 0.0 < found < 1.0:
        return Area(found, found, found)
    odds = math.log(found / (1.0 - found))
    limits = Estimate(odds, errors.stderr / (found * (1.0 - found)), errors.groups).interval(CONFIDENCE)
    return Area(found, *(1.0 / (1.0 + math.exp(-limit)) for limit in limits))


def curve(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """The ROC curve: rates of false and of true alarms, of one shape, rising from 0 to 1."""
    ranks, labels = _ranks(inside, outside)
    false_rate, true_rate, _ = binary_roc(ranks, labels, validate_args=False)
    return false_rate, true_rate
