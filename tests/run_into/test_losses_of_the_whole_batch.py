"""`train/loss` is of the whole batch: of all devices, and of all parts that it was cut into."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dualscore.objective import DualLoss
from dualscore.training.callbacks.health import Losses


class Devices:
    """Stands for a Trainer whose other device found `other`."""

    log_every_n_steps = 2

    def __init__(self, other: list[float] | None = None) -> None:
        self.strategy, self.global_step, self.other, self.waited = self, 0, other, 0

    def reduce(self, mine: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "mean"
        self.waited += 1
        return mine if self.other is None else (mine + torch.tensor(self.other)) / 2


def logged(trainer: Devices, parts: list[list[float]], time: bool = True) -> dict[str, float]:
    """What a step, whose batch has these parts, logs."""
    found: dict[str, float] = {}
    callback = Losses()
    module = SimpleNamespace(log=lambda name, value: found.update({name: float(value)}))
    for step in (1, 2):
        trainer.global_step = step
        for part in parts:
            total = torch.tensor(part) * step
            module.last_losses = DualLoss(total, 2 * total, 3 * total if time else None)
            callback.on_after_backward(trainer, module)  # type: ignore[arg-type]
        callback.after_step(trainer, module)  # type: ignore[arg-type]
    return found


def test_it_is_the_mean_over_devices_who_wait_in_logged_steps_alone() -> None:
    trainer = Devices(other=[10.0, 20.0, 30.0])
    assert logged(trainer, [[1.0, 2.0]]) == {
        "train/loss": 6.5,
        "train/space_loss": 13.0,
        "train/time_loss": 19.5,
    }
    assert trainer.waited == 1


@pytest.mark.parametrize(
    "parts", [[[1.0, 2.0, 3.0, 6.0]], [[1.0, 2.0], [3.0, 6.0]], [[1.0], [2.0], [3.0], [6.0]]]
)
def test_it_is_the_mean_over_parts(parts: list[list[float]]) -> None:
    assert logged(Devices(), parts)["train/loss"] == 6.0


def test_a_denoiser_has_no_time_loss() -> None:
    assert set(logged(Devices(), [[1.0]], time=False)) == {"train/loss", "train/space_loss"}
