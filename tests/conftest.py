"""Small real data sets, prepared once, and a place to run experiments in."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores have tests of their own

import torch

from dualscore.cli import main as run
from fakes import photograph, write_cifar10, write_official_imagenet
from skips import pytest_terminal_summary as pytest_terminal_summary
from workspace import EVERYTHING, ROOT, TINY, Workspace


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


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
def demo32_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data set at 32×32."""
    return _prepare("demo", "--out", str(tmp_path_factory.mktemp("demo") / "demo32"), "--size", "32")


@pytest.fixture(scope="session")
def demo_half(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the demo of one half of its training photographs, a or b."""

    def make(half: str) -> Path:
        return _prepare(f"demo_{half}", "--out", str(tmp_path_factory.mktemp("half") / f"demo_{half}"))

    return make


@pytest.fixture(scope="session")
def official_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes shards of photographs in an official format: imagenet64, imagenet32, cifar10 or bsds500."""
    made: dict[str, Path] = {}

    def make(dataset: str) -> Path:
        if dataset not in made:
            folder = tmp_path_factory.mktemp(dataset)
            size = ["--size", "16"] if dataset == "bsds500" else []
            if dataset == "cifar10":
                write_cifar10(folder / "source", images_per_batch=40)
            elif dataset == "bsds500":
                for split, name in (("train", "astronaut"), ("val", "chelsea"), ("test", "flower")):
                    (folder / "source" / split).mkdir(parents=True)
                    photograph(name, 160).save(folder / "source" / split / f"{name}.jpg")
            else:
                side = int(dataset.removeprefix("imagenet"))
                write_official_imagenet(folder / "source", side, train_images=840, val_images=40)
            made[dataset] = _prepare(
                dataset, "--src", str(folder / "source"), "--out", str(folder / "shards"), *size
            )
        return made[dataset]

    return make


@pytest.fixture(scope="session")
def trained_demo(tmp_path_factory: pytest.TempPathFactory, demo_shards: Path) -> Path:
    """A folder with the experiments and runs/patches_dual after two steps, all measured. Copy it to write."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    two_steps = ["trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", "patches_dual", *TINY, EVERYTHING, *two_steps, f"data.path={demo_shards}"]) == 0
    return folder


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Workspace:
    """An empty folder with the shipped experiments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    return Workspace(tmp_path, capsys)
