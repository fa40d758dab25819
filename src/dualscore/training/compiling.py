"""The training loss as one compiled function, where a compiler is at hand."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dualscore.objective import DualLoss, dual_score_matching

Loss = Callable[..., DualLoss]


def obstacle(device: str) -> str | None:
    """Why nothing can be compiled for a device here; None where nothing is known to be missing.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        What is missing, and how to get it.
    """
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is missing"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler} (install one, or name another in CXX)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's header files are missing (install python3-dev)"
    return None


def compiled_loss(device: str) -> Loss:
    """`dual_score_matching`, compiled whole: gradients inside, forward, backward, one batch size.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        The function. On a GPU features lie pixel by pixel, as its matrix units take them: the compiler leaves
        them channel by channel where a convolution has twice as many inputs as outputs, as a UNet's decoder
        has, and then a quarter of the time goes into turning them (docs/performance.md).
    """
    on_gpu: dict[str, Any] = {"options": {"force_layout_optimization": True}} if device == "cuda" else {}
    compiled: Loss = torch.compile(dual_score_matching, fullgraph=True, dynamic=False, **on_gpu)
    return compiled
