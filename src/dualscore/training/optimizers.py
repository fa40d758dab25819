"""How a step is computed and taken: the compiled loss, the optimiser, its learning rate."""

import importlib.util
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dualscore.objective import DualLoss, dual_score_matching
from dualscore.settings.config import Method, OptimConfig, Schedule

Loss = Callable[..., DualLoss]


def obstacle(device: str) -> str | None:
    """What is missing here to compile for `cpu` or `cuda`, and how to get it; None where nothing is."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is missing"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler} (install one, or name another in CXX)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's header files are missing (install python3-dev)"
    return None


def compiled_loss(device: str) -> Loss:
    """`dual_score_matching` compiled whole for `cpu` or `cuda`: forward and backward, one batch size."""
    # A GPU's matrix units take features pixel by pixel. Unless forced, the compiler leaves them channel by
    # channel in a UNet's decoder, and a quarter of the time goes into turning them (docs/performance.md).
    on_gpu: dict[str, Any] = {"options": {"force_layout_optimization": True}} if device == "cuda" else {}
    compiled: Loss = torch.compile(dual_score_matching, fullgraph=True, dynamic=False, **on_gpu)
    return compiled


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
    soap = optim.method is Method.soap
    kinds = [[p for p in others if p.ndim > 1], [p for p in others if p.ndim <= 1]] if soap else [others]
    groups: list[dict[str, Any]] = [{"params": parameters, "lr": optim.lr} for parameters in kinds]
    if slopes:
        groups.append({"params": slopes, "lr": optim.lr * optim.offset_lr_factor})
    if not soap:
        return torch.optim.Adam(groups, fused=True)
    from pytorch_optimizer import SOAP  # takes a second to import

    for group in groups[1:]:
        # The slopes' gradients are skewed: forgetting their size quickly would bias c(t) (docs/learning.md).
        group["betas"] = (0.9, 0.999)
    return SOAP(groups, lr=optim.lr, weight_decay=0.0)
