"""Watches gradients: reports their largest norm, and stops a run whose loss is not finite."""

import math

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from dualscore.errors import DivergenceError
from dualscore.module import DualScoreModule


class GradientHealth(Callback):
    """Logs the largest gradient norm since the last entry; stops before a step that would spoil the weights.

    The norm is that of the gradient averaged over devices, so that all of them stop together.
    """

    def __init__(self) -> None:
        self.largest = 0.0

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm):
            raise DivergenceError(_diagnosis(trainer.global_step, pl_module))
        self.largest = max(self.largest, norm)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("train/largest_gradient_norm", self.largest)
            self.largest = 0.0


def _diagnosis(step: int, module: DualScoreModule) -> str:
    """Say at which step and noise levels the loss or its gradient stopped being finite."""
    way_out = "the last good checkpoint is kept; try a smaller optim.lr with FRESH=1"
    losses = module.last_losses
    bad = ~torch.isfinite(losses.total)
    if not bad.any():
        worst = int(losses.total.argmax())
        return (
            f"step {step}: the gradient overflows; this device's largest loss, {losses.total[worst]:.3g}, "
            f"is at noise variance t = {module.last_noise_variance[worst]:.3g}; {way_out}"
        )
    levels = ", ".join(f"{t:.3g}" for t in module.last_noise_variance[bad].tolist()[:8])
    return f"step {step}: the loss is not finite at noise variance t = {levels}; {way_out}"
