"""Where and at which size the report's parts are run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from dualscore.devices import default_device
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment

ROOT = Path(__file__).parents[2]
TOY = [
    "network.width=4", "network.scales=1", "network.layers=2", "data.batch_size=8", "data.shuffle_buffer=64",
    "data.workers=1", "trainer.validate_images=16", "evaluate.batch_size=16",
]  # fmt: skip
"""Settings with which any experiment is small enough for a test."""


@dataclass(frozen=True)
class Setting:
    """What all parts share.

    Args:
        out: the report's folder.
        toy: whether networks and sets are so small that a CPU is enough.
    """

    out: Path
    toy: bool

    @cached_property
    def device(self) -> torch.device:
        """The GPU, or the CPU where there is none."""
        return torch.device(default_device())

    @property
    def work(self) -> Path:
        """What may be deleted afterwards: shards, runs, compiled code."""
        return self.out / "work"

    @property
    def shards(self) -> Path:
        """The synthetic images, prepared."""
        return self.work / "shards"

    @property
    def environment(self) -> dict[str, str]:
        """In which processes find this checkout's code."""
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        return os.environ | {"PYTHONPATH": paths}

    @property
    def repeats(self) -> int:
        """How often a step is timed."""
        return 3 if self.toy else 10

    def settings(self, *more: str) -> list[str]:
        """Overrides of the ImageNet experiments for the synthetic shards."""
        return [f"data.path={self.shards}", *(TOY if self.toy else []), *more]

    def config(self, experiment: str, *more: str) -> ExperimentConfig:
        """An experiment on the synthetic shards."""
        return load_experiment(experiment, self.settings(*more), ROOT / "experiments")

    def dualscore(self, *arguments: str) -> None:
        """Run a command of dualscore's in a process of its own."""
        self.run([sys.executable, "-m", "dualscore", *arguments])

    def prepare(self, *arguments: str) -> None:
        """Prepare a data set in a process of its own."""
        self.run([sys.executable, "-m", "data_prep", "build", *arguments])

    def start(self, command: list[str]) -> "subprocess.Popen[str]":
        """Start a command in the work folder, which has the experiments."""
        self.work.mkdir(parents=True, exist_ok=True)
        experiments = self.work / "experiments"
        if not experiments.exists():
            experiments.symlink_to(ROOT / "experiments")
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: list[str]) -> None:
        """Run a command in the work folder.

        Raises:
            RuntimeError: with the last line that it printed, make's own aside, if it fails.
        """
        process = self.start(command)
        lines = process.communicate()[0].strip().splitlines()
        said = [line for line in lines if not line.startswith("make: ***")]
        if process.returncode:
            last = said[-1] if said else f"status {process.returncode}"
            raise RuntimeError(f"{' '.join(command[1:5])} …: {last}")
