"""Keeps the weights sound: leaves out steps that are not finite, takes back what a loss spike did."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from dualscore.errors import DivergenceError
from dualscore.objective import DualLoss
from dualscore.runs.checkpoints import newest_sound
from dualscore.runs.folder import Run
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback, is_logged

ROLLBACKS = 3
"""Rollbacks between two validations; one more ends the run."""


class _Step(NamedTuple):
    """What a step of the optimiser saw: its number, gradient norm, losses (B,) and noise variances (B,)."""

    number: int
    norm: Tensor
    losses: Tensor
    noise_variance: Tensor


class GradientHealth(TrainingCallback):
    """Logs the largest gradient norm since the last entry, and leaves out steps whose gradient is not finite.

    All devices decide alike, because they look at the averaged gradient. On a GPU Adam itself leaves the step
    out, because looking at the norm would hold it up; what steps saw is kept until the next entry.
    """

    def __init__(self, limit: int, warn: Callable[[str], None]) -> None:
        self.limit, self.warn = limit, warn
        self.skipped = 0
        """Steps left out so far, as far as is known."""
        self._parts: list[tuple[Tensor, Tensor]] = []  # losses and noise variances of a batch's parts
        self._steps: list[_Step] = []  # that nobody has looked at yet
        self._largest = 0.0
        self._left_out = 0  # steps since the last validation
        self._first: _Step | None = None  # of them

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self._parts.append((pl_module.last_losses.total, pl_module.last_noise_variance))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        parameters = [p for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        losses, variances = map(torch.cat, zip(*self._parts, strict=True))
        self._parts.clear()
        self._steps.append(_Step(trainer.global_step, norm, losses, variances))
        bad = ~norm.isfinite()
        if isinstance(optimizer, torch.optim.Adam) and not self.looks_at_once(norm):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined] # as torch.amp does it
        elif bad:
            for parameter in parameters:
                parameter.grad = None  # an optimiser leaves such a parameter, and what it knows of it, alone
            self._look(pl_module)

    @staticmethod
    def looks_at_once(norm: Tensor) -> bool:
        """Whether looking at a norm holds up nothing."""
        return norm.device.type == "cpu"

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        if is_logged(trainer):
            self._look(module)
            module.log("train/largest_gradient_norm", self._largest)
            module.log("train/skipped_steps", float(self.skipped))
            self._largest = 0.0

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._look(module)
        self._left_out, self._first = 0, None

    def _look(self, module: DualScoreModule) -> None:
        """Warn of steps left out, and stop the run if they are too many; on all devices together."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        norms = torch.stack([step.norm for step in steps])
        finite = norms.isfinite()
        self._largest = max(self._largest, float(norms.where(finite, 0.0).max()))
        bad = [step for step, good in zip(steps, finite.tolist(), strict=True) if not good]
        if not bad:
            return
        self.skipped += len(bad)
        self._left_out += len(bad)
        self._first = first = self._first or bad[0]
        seen = (first.losses, first.noise_variance)
        losses, variances = (module.all_gather(part).flatten() for part in seen)  # type: ignore[union-attr]
        what = f"step {first.number}: {_diagnosis(losses, variances)}"
        if self._left_out > self.limit:
            raise DivergenceError(
                f"{what}; {self._left_out} such steps since the last validation, where trainer.max_skipped="
                f"{self.limit}: the last good checkpoint is kept; try a smaller optim.lr with --fresh"
            )
        self.warn(f"{what}: left out; {self._left_out} since the last validation, at most {self.limit}")


def _diagnosis(losses: Tensor, noise_variance: Tensor) -> str:
    """At which noise levels the loss or its gradient is not finite."""
    bad = ~torch.isfinite(losses)
    if bad.any():
        levels = ", ".join(f"{t:.3g}" for t in noise_variance[bad].tolist()[:8])
        return f"the loss is not finite at noise variance t = {levels}"
    worst = int(losses.argmax())
    largest = f"the largest loss, {losses[worst]:.3g}, is at noise variance t = {noise_variance[worst]:.3g}"
    return f"the gradient overflows; {largest}"


class Losses(TrainingCallback):
    """Logs the losses of the whole batch of a step: the means over its parts and over all devices.

    Devices wait for each other only in the steps that the log has an entry of.
    """

    def __init__(self) -> None:
        self._parts: list[DualLoss] = []

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self._parts.append(pl_module.last_losses)

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        parts, self._parts = self._parts, []
        if not is_logged(trainer):
            return
        columns = {"loss": [p.total for p in parts]}
        for name in ("space", "time", "level", "likelihood"):
            if found := [loss for p in parts if (loss := getattr(p, name)) is not None]:
                columns[f"{name}_loss"] = found
        means = torch.stack([torch.cat(column).mean() for column in columns.values()])
        means = trainer.strategy.reduce(means, reduce_op="mean")
        for name, mean in zip(columns, means, strict=True):
            module.log(f"train/{name}", mean)


class SpikeGuard(TrainingCallback):
    """Loads the last checkpoint's weights when the loss has jumped, and goes on with the next images.

    A spike is `factor` times the lowest loss so far, averaged over devices and over the steps between two
    entries in the log. Steps stay counted: the same images with the same noise might do it again.
    """

    def __init__(self, factor: float, run: Run, warn: Callable[[str], None]) -> None:
        self.factor, self.run, self.warn = factor, run, warn
        self.lowest = math.inf
        self._rollbacks = 0
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest = state_dict["lowest"]

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self._losses.append(pl_module.last_losses.total.mean())

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        if not is_logged(trainer):
            return
        mean = float(trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean"))
        self._losses = []
        if mean > self.factor * self.lowest:  # one that is not finite is GradientHealth's
            self._roll_back(trainer, module, mean)
        elif math.isfinite(mean):
            self.lowest = min(self.lowest, mean)

    def on_validation_end(self, *_: object) -> None:
        self._rollbacks = 0

    def _roll_back(self, trainer: Trainer, module: DualScoreModule, mean: float) -> None:
        times = f"{mean / self.lowest:.1f} times its lowest"
        what = f"step {trainer.global_step}: the loss jumped to {mean:.3g}, {times}"
        found = newest_sound(self.run, self.warn, trainer.is_global_zero)
        self._rollbacks += 1
        if found is None or self._rollbacks > ROLLBACKS:
            again = "no checkpoint is there yet" if found is None else f"for the {self._rollbacks}th time"
            raise DivergenceError(f"{what}, {again}; try a smaller optim.lr with --fresh")
        path, content = found
        module.load_state_dict(content["state_dict"])
        for optimizer, state in zip(trainer.optimizers, content["optimizer_states"], strict=True):
            # The schedule goes on, and has already set the next step's rates.
            rates = [{k: group[k] for k in ("lr", "initial_lr")} for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group.update(rate)
        where = f"step {content['global_step']} ({path.name})"
        self.warn(f"{what}: back to the weights of {where}, with the next images")
