"""Watches gradients: reports their largest norm, and stops a run whose loss is not finite."""

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from dualscore.errors import DivergenceError
from dualscore.module import DualScoreModule


class GradientHealth(Callback):
    """Logs the largest gradient norm since the last entry; stops a run whose gradients are not finite.

    The norm is that of the gradient averaged over devices, so that all of them stop together. Looking at it
    would hold up a GPU, so there it is looked at with every entry in the log and before every checkpoint;
    what the first bad step saw is kept until then. On a CPU a bad step is stopped before it is made.
    """

    def __init__(self) -> None:
        self._fine: Tensor | None = None
        self._largest: Tensor
        self._witness: tuple[Tensor, ...]

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        step = torch.full_like(norm, trainer.global_step, dtype=torch.int64)
        seen = step, pl_module.last_losses.total, pl_module.last_noise_variance
        if self._fine is None:
            self._fine, self._largest, self._witness = norm.isfinite(), norm, seen
        else:
            fine = self._fine
            self._witness = tuple(
                torch.where(fine, new, old) for new, old in zip(seen, self._witness, strict=True)
            )
            self._fine, self._largest = fine & norm.isfinite(), torch.maximum(self._largest, norm)
        if self.looks_at_once(norm):
            self._check()

    @staticmethod
    def looks_at_once(norm: Tensor) -> bool:
        """Whether looking at a norm holds up nothing."""
        return norm.device.type == "cpu"

    def _check(self) -> None:
        if self._fine is not None and not self._fine:
            step, losses, noise_variance = self._witness
            raise DivergenceError(_diagnosis(int(step), losses, noise_variance))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if self._fine is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check()
            pl_module.log("train/largest_gradient_norm", self._largest)
            self._fine = None

    def on_validation_start(self, *_: object) -> None:
        self._check()


def _diagnosis(step: int, losses: Tensor, noise_variance: Tensor) -> str:
    """Say at which step and noise levels the loss or its gradient stopped being finite."""
    way_out = "the last good checkpoint is kept; try a smaller optim.lr with FRESH=1"
    bad = ~torch.isfinite(losses)
    if not bad.any():
        worst = int(losses.argmax())
        return (
            f"step {step}: the gradient overflows; this device's largest loss, {losses[worst]:.3g}, "
            f"is at noise variance t = {noise_variance[worst]:.3g}; {way_out}"
        )
    levels = ", ".join(f"{t:.3g}" for t in noise_variance[bad].tolist()[:8])
    return f"step {step}: the loss is not finite at noise variance t = {levels}; {way_out}"
