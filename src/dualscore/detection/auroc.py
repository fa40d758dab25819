"""Area under the ROC curve, with an interval by stratified bootstrap."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_roc

from dualscore.noise import MEASURING, seeded_generator

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Area:
    """P(a strange image scores higher than one that is not) + ½ P(equal), and where it may lie."""

    auroc: float
    low: float
    high: float


def _ranks(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as ranks in [0, 1], equal ones equal, and the labels: 1 is outside.

    torchmetrics takes numbers beyond [0, 1] for logits, and their sigmoid in single precision makes all
    scores beyond about 17 equal.
    """
    values, rank = torch.unique(torch.cat([inside, outside]), return_inverse=True)
    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    return rank.double() / max(1, len(values) - 1), labels


def area(inside: Tensor, outside: Tensor, seed: int = 0, resamples: int = RESAMPLES) -> Area:
    """AUROC and the bootstrap's percentile interval.

    Images of either side are drawn with replacement among their own side, as many as there are.
    (torchmetrics' BootStrapper mixes the sides and draws from torch's global generator.)

    Args:
        inside: scores of images that are not strange, shape (n,), n ≥ 1.
        outside: scores of strange ones, shape (m,), m ≥ 1.
        seed: of the draws; areas of one seed and of the same images have the same draws.
        resamples: how many.

    Returns:
        The area and the limits of its 95 % interval.
    """
    ranks, labels = _ranks(inside, outside)
    count = len(inside)
    generator = seeded_generator(torch.device("cpu"), MEASURING, seed)
    drawn = torch.empty(resamples, dtype=torch.float64)
    for k in range(resamples):
        mine = torch.randint(count, (count,), generator=generator)
        others = count + torch.randint(len(outside), (len(outside),), generator=generator)
        drawn[k] = binary_auroc(ranks[torch.cat([mine, others])], labels, validate_args=False)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = torch.quantile(drawn, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Area(float(binary_auroc(ranks, labels, validate_args=False)), low, high)


def curve(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """The ROC curve: rates of false and of true alarms, each of one shape, rising from 0 to 1."""
    ranks, labels = _ranks(inside, outside)
    false_rate, true_rate, _ = binary_roc(ranks, labels, validate_args=False)
    return false_rate, true_rate
