"""Small real data sets, prepared once, and a place to run experiments in."""

import fcntl
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores have tests of their own

import torch

import forking
from data_prep.sources import bsds300
from dualscore.cli import main as run
from fakes import photograph, write_cifar10, write_official_imagenet
from skips import pytest_terminal_summary as pytest_terminal_summary
from workspace import EVERYTHING, REFERENCE, ROOT, TINY, Workspace


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


QUICK_PICTURES = "dualscore.training.callbacks.pictures.STEPS", 4
"""Drawing samples for TensorBoard takes a seventh of a tiny run's time."""

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Has a folder of some name filled at its first use; all processes of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def trained_once(once: Once) -> Callable[..., Path]:
    """Trains an experiment once for all tests: in a folder of some name, with the experiments beside runs."""

    def made(name: str, *arguments: str) -> Path:
        def fill(folder: Path) -> None:
            (folder / "experiments").symlink_to(ROOT / "experiments")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr(*QUICK_PICTURES)
                assert run(["train", *arguments]) == 0

        return once(name, fill)

    return made


def _prepare(*arguments: str) -> None:
    from data_prep.cli import main as prepare

    assert prepare(["build", *arguments, "--workers", "1"]) == 0


@pytest.fixture(scope="session")
def demo_shards(once: Once) -> Path:
    """The demo data set at 16×16."""
    return once("demo16", lambda folder: _prepare("demo", "--out", str(folder), "--size", "16"))


@pytest.fixture(scope="session")
def demo32_shards(once: Once) -> Path:
    """The demo data set at 32×32."""
    return once("demo32", lambda folder: _prepare("demo", "--out", str(folder), "--size", "32"))


@pytest.fixture(scope="session")
def demo_half(once: Once) -> Callable[[str], Path]:
    """Makes the demo of one half of its training photographs, a or b."""
    return lambda half: once(f"demo_{half}", lambda folder: _prepare(f"demo_{half}", "--out", str(folder)))


@pytest.fixture(scope="session")
def official_shards(once: Once) -> Callable[[str], Path]:
    """Makes shards of photographs as official files: imagenet64, imagenet32, cifar10, bsds500 or bsds300.

    Those of `photographs` are crops of others, as its own take packages.
    """

    def make(dataset: str) -> Path:
        def fill(folder: Path) -> None:
            size = ["--size", "16"] if dataset == "bsds500" else []
            if dataset == "cifar10":
                write_cifar10(folder / "source", images_per_batch=40)
            elif dataset.startswith("bsds"):
                more = [("train", "coffee")] if dataset == "bsds300" else []
                for split, name in (("train", "astronaut"), ("val", "chelsea"), ("test", "flower"), *more):
                    (folder / "source" / split).mkdir(parents=True, exist_ok=True)
                    photograph(name, 160).save(folder / "source" / split / f"{name}.jpg")
            elif dataset.startswith("imagenet"):
                side = int(dataset.removeprefix("imagenet"))
                write_official_imagenet(folder / "source", side, train_images=840, val_images=40)
            if dataset == "photographs":
                _prepare("demo", "--out", str(folder / "shards"), "--size", "32")
                manifest = folder / "shards/manifest.json"
                manifest.write_text(
                    manifest.read_text().replace('"dataset": "demo"', f'"dataset": "{dataset}"')
                )
                return
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bsds300, "PATCHES", {"train": 400, "val": 60, "test": 80})
                _prepare(dataset, "--src", str(folder / "source"), "--out", str(folder / "shards"), *size)

        return once(dataset, fill) / "shards"

    return make


@pytest.fixture(scope="session")
def trained_demo(trained_once: Callable[..., Path], demo_shards: Path) -> Path:
    """A folder with the experiments and runs/patches_dual after two steps, all measured. Copy it to write."""
    two_steps = ["trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
    return trained_once("trained", "patches_dual", *TINY, EVERYTHING, *two_steps, f"data.path={demo_shards}")


@pytest.fixture(scope="session")
def whole(trained_once: Callable[..., Path], demo_shards: Path) -> str:
    """The run of `REFERENCE`, never interrupted: what all those are compared with that were."""
    folder = trained_once("whole", "patches_dual", *REFERENCE, f"data.path={demo_shards}")
    return str(folder / "runs/patches_dual")


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder called private can be read; root may read everything, so the system's refusal is imitated."""
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has Python commands that the tested code starts be forks, too."""
    monkeypatch.setattr(subprocess, "Popen", forking.Popen)


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Workspace:
    """An empty folder with the shipped experiments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*QUICK_PICTURES)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    return Workspace(tmp_path, capsys)


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How loader processes are started: as Python did to 3.13, and as it does from 3.14 on."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)
