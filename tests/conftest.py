"""Small real data sets, prepared once, and a place to run experiments in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dualscore.cli import main
from fakes import write_cifar10, write_official_imagenet

ROOT = Path(__file__).parents[1]

TINY = [
    "network.width=4",
    "data.batch_size=16",
    "trainer.validate_images=32",
    "trainer.log_every=1",
    "trainer.accelerator=cpu",
    "evaluate.images=64",
    "evaluate.train_images=32",
    "evaluate.batch_size=32",
]
"""Overrides that shrink any experiment to seconds."""


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)


def _prepare(*arguments: str) -> Path:
    from data_prep.cli import main as prepare

    out = Path(arguments[arguments.index("--out") + 1])
    assert prepare(["build", *arguments, "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data set at 16×16."""
    return _prepare("demo", "--out", str(tmp_path_factory.mktemp("demo") / "demo16"), "--size", "16")


@pytest.fixture(scope="session")
def official_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes shards of real photographs that came in an official format: imagenet64, imagenet32 or cifar10."""
    made: dict[str, Path] = {}

    def make(dataset: str) -> Path:
        if dataset not in made:
            folder = tmp_path_factory.mktemp(dataset)
            if dataset == "cifar10":
                write_cifar10(folder / "source", images_per_batch=40)
            else:
                size = int(dataset.removeprefix("imagenet"))
                write_official_imagenet(folder / "source", size, train_images=80, val_images=40)
            made[dataset] = _prepare(
                dataset, "--src", str(folder / "source"), "--out", str(folder / "shards")
            )
        return made[dataset]

    return make


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

    def fail(self, *arguments: str) -> str:
        """Run a command that must fail; returns its one line."""
        assert main(list(arguments)) == 1
        error = self._capsys.readouterr().err.strip()
        line = error.splitlines()[-1]
        assert line.startswith("error: ")
        assert "Traceback" not in error
        return line

    def report(self, run: str) -> dict[str, Any]:
        """A run's evaluation.json."""
        content: dict[str, Any] = json.loads((self.folder / "runs" / run / "evaluation.json").read_text())
        return content

    def checkpoint(self, run: str, name: str = "last") -> dict[str, Any]:
        """A run's checkpoint."""
        path = self.folder / "runs" / run / "checkpoints" / f"{name}.ckpt"
        content: dict[str, Any] = torch.load(path, weights_only=True)
        return content


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Workspace:
    """An empty folder with the shipped experiments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    return Workspace(tmp_path, capsys)
