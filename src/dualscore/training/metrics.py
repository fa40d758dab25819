"""What is gathered over batches and devices, in double precision."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dualscore.measuring.subject import Rows


class Moments(Metric):
    """Count, mean and unbiased variance of several quantities.

    The states are sums in double precision, which are exact enough under any number of ranks.

    Args:
        quantities: how many quantities are tracked.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, quantities: int) -> None:
        super().__init__()
        for name in ("count", "total", "square"):
            self.add_state(name, torch.zeros(quantities, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, quantity: Tensor, values: Tensor) -> None:
        """Add values.

        Args:
            quantity: which quantity each value belongs to, int64, shape (B,).
            values: the values, shape (B,).
        """
        values = values.detach().double()
        self.count.index_add_(0, quantity, torch.ones_like(values))
        self.total.index_add_(0, quantity, values)
        self.square.index_add_(0, quantity, values.square())

    def compute(self) -> dict[str, Tensor]:
        """`count`, `mean` and `variance`, each of shape (quantities,); NaN where nothing was added."""
        mean = self.total / self.count
        variance = (self.square - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        return {"count": self.count.clone(), "mean": mean, "variance": variance}

    def set_dtype(self, dst_type: Any) -> "Moments":  # noqa: ANN401, ARG002 - torchmetrics' signature
        """Keep double precision whatever dtype is asked for."""
        return self


class GatheredRows(Metric):
    """Rows of all devices, as quantities draw them.

    Args:
        names: of the rows' columns.
    """

    full_state_update = False

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        for place in range(len(names)):  # states are attributes, and columns have dots and slashes
            self.add_state(f"column_{place}", [], dist_reduce_fx="cat")

    def update(self, rows: Rows) -> None:
        """Add a batch's rows."""
        for place, name in enumerate(self.names):
            values = rows[name].detach()
            getattr(self, f"column_{place}").append(values if name == "position" else values.double())

    def compute(self) -> Rows:
        """The rows of all devices, on the CPU; every device must call this."""
        columns = (getattr(self, f"column_{place}") for place in range(len(self.names)))
        joined = (torch.cat(c) if isinstance(c, list) else c for c in columns)
        return dict(zip(self.names, (values.cpu() for values in joined), strict=True))

    def set_dtype(self, dst_type: Any) -> "GatheredRows":  # noqa: ANN401, ARG002 - torchmetrics' signature
        """Keep double precision whatever dtype is asked for."""
        return self
