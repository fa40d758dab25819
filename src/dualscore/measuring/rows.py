"""Rows of figures, one an image, as quantities draw them and figures read them."""

import torch
from torch import Tensor

Rows = dict[str, Tensor]
"""Named figures of n images in float64, each of shape (n,) or (n, m); `position` (int64) says of which."""


def joined(one: Rows, other: Rows) -> tuple[Tensor, Tensor]:
    """Indices (m,) into two tables of the images that both hold, in the order of positions."""
    a, b = one["position"], other["position"]
    mine, theirs = torch.isin(a, b).nonzero()[:, 0], torch.isin(b, a).nonzero()[:, 0]
    return mine[a[mine].argsort()], theirs[b[theirs].argsort()]
