"""Watches gradients: reports their largest norm, leaves out steps that are not finite, stops at too many."""

from collections.abc import Callable

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from dualscore.errors import DivergenceError
from dualscore.terminal.hints import afresh
from dualscore.training.callbacks.steps import is_logged
from dualscore.training.lightning_module import DualScoreModule


class GradientHealth(Callback):
    """Logs the largest gradient norm since the last entry, and leaves out steps whose gradient is not finite.

    The norm is that of the gradient averaged over devices, so that all of them do the same. Looking at it
    would hold up a GPU: there Adam itself leaves the step out, and what the first bad one saw is kept until
    something is logged or saved.

    Args:
        limit: how many steps may be left out between validations.
        warn: told of steps that were left out.
    """

    def __init__(self, limit: int, warn: Callable[[str], None]) -> None:
        self.limit, self.warn = limit, warn
        self.skipped = 0
        """Steps left out so far, as far as is known."""
        self._parts: list[tuple[Tensor, Tensor]] = []  # of a batch cut into several
        self._forget()

    def _forget(self) -> None:
        self._largest: Tensor | None = None
        self._left_out: Tensor | None = None
        self._told = 0
        self._witness: tuple[Tensor, ...] = ()

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, DualScoreModule)
        self._parts.append((pl_module.last_losses.total, pl_module.last_noise_variance))

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        parameters = [p for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        bad = ~norm.isfinite()
        step = torch.full_like(norm, trainer.global_step, dtype=torch.int64)
        losses, variances = zip(*self._parts, strict=True)
        seen = step, torch.cat(losses), torch.cat(variances)
        self._parts.clear()
        if self._left_out is None:
            self._left_out, self._witness = bad.long(), seen
        else:
            first = self._left_out == 0
            self._witness = tuple(
                torch.where(first, new, old) for new, old in zip(seen, self._witness, strict=True)
            )
            self._left_out = self._left_out + bad
        good = norm.where(~bad, 0.0)
        self._largest = good if self._largest is None else torch.maximum(self._largest, good)
        if isinstance(optimizer, torch.optim.Adam) and not self.looks_at_once(norm):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined] # as torch.amp does it
        elif bad:
            for parameter in parameters:
                parameter.grad = None  # an optimiser leaves such a parameter, and what it knows of it, alone
            self._check(pl_module)

    @staticmethod
    def looks_at_once(norm: Tensor) -> bool:
        """Whether looking at a norm holds up nothing."""
        return norm.device.type == "cpu"

    def _check(self, module: DualScoreModule) -> None:
        """Warn of what was left out, stop if it was too much; on all devices together."""
        left_out = 0 if self._left_out is None else int(self._left_out)
        if left_out == self._told:
            return
        self.skipped += left_out - self._told
        self._told = left_out
        step, losses, noise_variance = self._witness
        losses, noise_variance = (module.all_gather(part).flatten() for part in (losses, noise_variance))  # type: ignore[union-attr]
        what = _diagnosis(int(step), losses, noise_variance)
        if left_out > self.limit:
            raise DivergenceError(
                f"{what}; {left_out} such steps since the last validation, where trainer.max_skipped="
                f"{self.limit}: the last good checkpoint is kept; try a smaller optim.lr with {afresh()}"
            )
        self.warn(f"{what}: left out; {left_out} since the last validation, at most {self.limit}")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        if self._largest is not None and is_logged(trainer):
            self._check(pl_module)
            pl_module.log("train/largest_gradient_norm", self._largest)
            pl_module.log("train/skipped_steps", float(self.skipped))
            self._largest = None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, DualScoreModule)
        self._check(pl_module)
        self._forget()


def _diagnosis(step: int, losses: Tensor, noise_variance: Tensor) -> str:
    """Say at which step and noise levels the loss or its gradient is not finite."""
    bad = ~torch.isfinite(losses)
    if not bad.any():
        worst = int(losses.argmax())
        return (
            f"step {step}: the gradient overflows; the largest loss, {losses[worst]:.3g}, is at noise "
            f"variance t = {noise_variance[worst]:.3g}"
        )
    levels = ", ".join(f"{t:.3g}" for t in noise_variance[bad].tolist()[:8])
    return f"step {step}: the loss is not finite at noise variance t = {levels}"
