"""What moves the weights: the optimiser, its groups of parameters, its learning rate."""

import math
from collections.abc import Callable

import torch
from torch import nn

from dualscore.settings.config import Method, OptimConfig, Schedule


def schedule(optim: OptimConfig, max_steps: int) -> Callable[[int], float]:
    """The learning rate's factor at each step, warm-up included."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
        if optim.schedule is Schedule.halving:
            decay: float = 0.5 ** (step // optim.halve_every)
            return warm * decay
        progress = min(1.0, max(0, step - optim.warmup_steps) / (max_steps - optim.warmup_steps))
        last = optim.final_lr / optim.lr
        return warm * (last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    return factor


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Adam, or SOAP (Vyas et al. 2024, arXiv 2409.11321), which is Adam for gains and for c(t).

    The model's `offset`, if it has one, holds the slopes of c(t).
    """
    offset = getattr(model, "offset", None)
    slopes = list(offset.parameters()) if offset is not None else []
    others = [p for p in model.parameters() if all(p is not q for q in slopes)]
    if optim.method is Method.adam:
        groups = [{"params": others, "lr": optim.lr}]
        if slopes:
            groups.append({"params": slopes, "lr": optim.lr * optim.offset_lr_factor})
        return torch.optim.Adam(groups, fused=True)
    from pytorch_optimizer import SOAP  # takes a second to import

    # The slopes' gradients are skewed: forgetting their size quickly would bias c(t) (docs/learning.md).
    slow = {"betas": (0.9, 0.999)}
    matrices = [p for p in others if p.ndim > 1]
    vectors = [p for p in others if p.ndim <= 1]
    groups = [{"params": matrices, "lr": optim.lr}, {"params": vectors, "lr": optim.lr, **slow}]
    if slopes:
        groups.append({"params": slopes, "lr": optim.lr * optim.offset_lr_factor, **slow})
    return SOAP(groups, lr=optim.lr, weight_decay=0.0)
