"""Takes back what a loss spike did to the weights."""

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dualscore.errors import DivergenceError
from dualscore.runs.checkpoints import newest_sound
from dualscore.runs.folder import Run
from dualscore.terminal.hints import afresh
from dualscore.training.callbacks.steps import ends_step, is_logged
from dualscore.training.lightning_module import DualScoreModule

MOST = 3
"""Rollbacks between two validations; one more ends the run."""


class SpikeGuard(Callback):
    """Loads the last checkpoint's weights when the loss has jumped, and goes on with the next images.

    The loss is averaged between two entries in the log and over devices, so that nobody waits in between and
    all do the same. The steps made stay counted: the same images with the same noise might do it again.

    Args:
        factor: how many times the lowest such average so far is a spike.
        run: where the checkpoints are.
        warn: told of rollbacks.
    """

    def __init__(self, factor: float, run: Run, warn: Callable[[str], None]) -> None:
        self.factor, self.run, self.warn = factor, run, warn
        self.lowest = math.inf
        self._rollbacks = 0
        self._sum: Tensor | None = None
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The lowest average so far."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the lowest average so far."""
        self.lowest = state_dict["lowest"]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        loss = pl_module.last_losses.total.mean()
        self._sum = loss if self._sum is None else self._sum + loss
        self._steps += 1
        if not (ends_step(trainer, batch_idx) and is_logged(trainer)):
            return
        mean = float(trainer.strategy.reduce(self._sum / self._steps, reduce_op="mean"))
        self._sum, self._steps = None, 0
        if mean > self.factor * self.lowest:  # one that is not finite is GradientHealth's
            self._roll_back(trainer, pl_module, mean)
        elif math.isfinite(mean):
            self.lowest = min(self.lowest, mean)

    def on_validation_end(self, *_: object) -> None:
        self._rollbacks = 0

    def _roll_back(self, trainer: lightning.Trainer, module: DualScoreModule, mean: float) -> None:
        times = f"{mean / self.lowest:.1f} times its lowest"
        what = f"step {trainer.global_step}: the loss jumped to {mean:.3g}, {times}"
        found = newest_sound(self.run, self.warn, trainer.is_global_zero)
        self._rollbacks += 1
        if found is None or self._rollbacks > MOST:
            again = "no checkpoint is there yet" if found is None else f"for the {self._rollbacks}th time"
            raise DivergenceError(f"{what}, {again}; try a smaller optim.lr with {afresh()}")
        path, content = found
        with torch.no_grad():
            module.load_state_dict(content["state_dict"])
        for optimizer, state in zip(trainer.optimizers, content["optimizer_states"], strict=True):
            # The schedule goes on, and has already set the next step's rates.
            rates = [
                {key: value for key, value in group.items() if key in ("lr", "initial_lr")}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(state)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group.update(rate)
        where = f"step {content['global_step']} ({path.name})"
        self.warn(f"{what}: back to the weights of {where}, with the next images")
