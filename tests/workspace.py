"""A place to run the command line in, and settings that shrink any experiment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import forking
from dualscore.cli import main

ROOT = Path(__file__).parents[1]

TINY = [
    "network.width=4",
    "data.batch_size=16",
    "trainer.validate_images=32",
    "trainer.log_every=1",
    "trainer.accelerator=cpu",
    "trainer.compile=false",
    "evaluate.images=64",
    "evaluate.train_images=32",
    "evaluate.batch_size=32",
    "evaluate.estimators=[paper]",
    "evaluate.subset_images=32",
    "evaluate.strata=4",
    "evaluate.draws=1",
    "evaluate.ode_images=3",  # which are of both test photographs of the demo
    "evaluate.ode_tolerance=5e-2",
    "evaluate.chains=4",
    "evaluate.yardsticks=[stationary,full_covariance]",
]
"""Overrides that shrink any experiment to seconds."""

REFERENCE = [
    *TINY,
    "optim.warmup_steps=2",
    "optim.ema_steps=3",
    "trainer.max_steps=9",
    "trainer.validate_every=3",
]
"""Overrides of the run that runs which were interrupted are compared with: three validations, at 3, 6, 9."""

EVERYTHING = "evaluate.estimators=[paper,dequantized,bound,ode,checks]"
"""All that an evaluation can measure; tiny runs measure the paper's figure only."""


def copy_shards(shards: Path, to: Path) -> Path:
    """A copy of a data set to damage, without the fits that other tests may be writing into it."""
    return Path(shutil.copytree(shards, to, ignore=shutil.ignore_patterns(".yardsticks")))


def given_by_make(folder: Path, *arguments: str) -> list[str]:
    """What make gives to the program, by a Python in `folder` that prints it; the home is /home/me."""
    python, installed = folder / "venv/bin/python", folder / "venv/.installed"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    installed.touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"HOME": "/home/me"}
    command = ["make", "--no-print-directory", "-o", str(installed), f"VENV={folder}/venv", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run_code(code: str, *arguments: str, **environment: str) -> Any:
    """Run Python code in a process of its own; what it printed and its status."""
    known = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return forking.run(
        [sys.executable, "-c", code, *arguments],
        env=known | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def command(*arguments: str, before: str = "", **environment: str) -> Any:
    """Run a command in a process of its own, after some code."""
    code = f"import sys\n{before}\nfrom dualscore.cli import main\nsys.exit(main(sys.argv[1:]))"
    return run_code(code, *arguments, **environment)


class Workspace:
    """A folder with the experiments in it, to run the command line in."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed; returns what it printed."""
        status = main(list(arguments))
        printed = self._capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    def fail(self, *arguments: str, status: int = 1) -> str:
        """Run a command that must fail; returns its one line."""
        assert main(list(arguments)) == status
        error = self._capsys.readouterr().err.strip()
        line = error.splitlines()[-1]
        assert line.startswith("error: ")
        assert "Traceback" not in error
        return line

    def report(self, run: str) -> dict[str, Any]:
        """A run's evaluation.json; a run elsewhere is named by its whole path."""
        content: dict[str, Any] = json.loads((self.folder / "runs" / run / "evaluation.json").read_text())
        return content

    def checkpoint(self, run: str, name: str = "last") -> dict[str, Any]:
        """A run's checkpoint."""
        path = self.folder / "runs" / run / "checkpoints" / f"{name}.ckpt"
        content: dict[str, Any] = torch.load(path, weights_only=True)
        return content
