"""Area under the ROC curve, with an interval by a bootstrap of the photographs of each side."""

from collections.abc import Sequence
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
    low: float | None
    high: float | None
    """None, both, where one side has one photograph."""


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


def area(
    inside: Tensor,
    outside: Tensor,
    photographs: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Area:
    """AUROC and the bootstrap's percentile interval.

    Photographs of either side are drawn with replacement among their own side, as many as there are, each
    with all its images: crops of one photograph are not independent, and a bootstrap of images takes them
    to be. (torchmetrics' BootStrapper mixes the sides and draws from torch's global generator.)
    Source: Rutter 2000, Bootstrap estimation of diagnostic accuracy with patient-clustered data, Academic
    Radiology 7(6).

    Args:
        inside: scores of images that are not strange, shape (n,), n ≥ 1.
        outside: scores of strange ones, shape (m,), m ≥ 1.
        photographs: which photograph each image is of, 0 to G − 1, for either side, shapes (n,) and (m,);
            None where each is its own.
        seed: of the draws; areas of one seed and of the same images have the same draws.
        resamples: how many.

    Returns:
        The area and the limits of its 95 % interval; no limits where a side has one photograph.
    """
    ranks, labels = _ranks(inside, outside)
    found = float(binary_auroc(ranks, labels, validate_args=False))
    count = len(inside)
    mine, others = photographs or (torch.arange(count), torch.arange(len(outside)))
    if min(int(mine.max()), int(others.max())) == 0:
        return Area(found, None, None)
    generator = seeded_generator(torch.device("cpu"), MEASURING, seed)
    drawn = torch.empty(resamples, dtype=torch.float64)
    for k in range(resamples):
        images = torch.cat([_drawn(mine, generator), count + _drawn(others, generator)])
        drawn[k] = binary_auroc(ranks[images], labels[images], validate_args=False)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = torch.quantile(drawn, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Area(found, low, high)


def _drawn(photographs: Tensor, generator: torch.Generator) -> Tensor:
    """The images of as many photographs as there are, drawn with replacement."""
    count = int(photographs.max()) + 1
    times = torch.randint(count, (count,), generator=generator).bincount(minlength=count)
    return torch.repeat_interleave(times[photographs])


def curve(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """The ROC curve: rates of false and of true alarms, each of one shape, rising from 0 to 1."""
    ranks, labels = _ranks(inside, outside)
    false_rate, true_rate, _ = binary_roc(ranks, labels, validate_args=False)
    return false_rate, true_rate
