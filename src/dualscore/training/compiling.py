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
