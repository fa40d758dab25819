"""The command line with a fault in it: FAULT=what happens, FAULT_RANK=where, in step 3."""

import os
import signal
import sys
import time
from typing import Any

import torch

from dualscore.cli import main
from dualscore.terminal.console import rank
from dualscore.training.lightning_module import DualScoreModule


def nan(draws: Any) -> None:
    """A noise value that is none, at a level to recognise."""
    draws.noise[1] = torch.nan
    draws.noise_variance[1] = 0.125


def die(_: object) -> None:
    """As the out-of-memory killer does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: object) -> None:
    """For ever."""
    time.sleep(1000)


def freeze(_: object) -> None:
    """Nothing of the process runs any more, its threads neither."""
    os.kill(os.getpid(), signal.SIGSTOP)


FAULTS = {f.__name__: f for f in (nan, die, hang, freeze)}
fault, where = FAULTS.get(os.environ["FAULT"], lambda _: None), int(os.environ["FAULT_RANK"])
original = DualScoreModule.draw


def draw(self: DualScoreModule, step: int, images: int) -> Any:
    """Draw, and in one process and step something else."""
    draws = original(self, step, images)
    if step == 3 and rank() == where:
        fault(draws)
    return draws


if __name__ == "__main__":
    DualScoreModule.draw = draw  # type: ignore[method-assign]
    sys.exit(main())
