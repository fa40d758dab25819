"""The house's own rules: versions in step, the core free of Lightning, nothing dangerous in the code."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from workspace import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = {
    re.sub(r"[-_.]+", "-", name).lower(): version
    for name, version in (
        line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line
    )
}
DECLARED = [Requirement(r) for r in PROJECT["dependencies"]] + [
    Requirement(r) for extra in PROJECT["optional-dependencies"].values() for r in extra
]


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_the_lock_satisfies_what_is_declared_and_is_what_runs(requirement: Requirement) -> None:
    locked = LOCK[re.sub(r"[-_.]+", "-", requirement.name).lower()]
    assert requirement.specifier.contains(locked)
    assert Version(metadata.version(requirement.name)).public == locked


def test_conda_gives_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (python,) = [d for d in plain if d.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1])
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert "-r requirements.lock" in pip
    assert "-e ." in pip


def test_every_dependency_is_justified() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for requirement in PROJECT["dependencies"]:
        (line,) = [x for x in lines if f'"{requirement}"' in x]
        assert "#" in line


CORE = [
    "noise",
    "energy",
    "gaussian",
    "objective",
    "likelihood",
    "likelihood.consistency",
    "densities",
    "images",
    "model",
    "released",
    "networks.unet",
    "sampling",
]


def test_the_core_needs_torch_only() -> None:
    """Imported alone, the core must not bring Lightning, webdataset or the configuration."""
    code = f"import sys; import {', '.join(f'dualscore.{m}' for m in CORE)}; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT / "src").split())
    tops = {name.partition(".")[0] for name in loaded}
    assert "torch" in tops
    assert not tops & {"lightning", "pytorch_lightning", "webdataset", "omegaconf", "torchmetrics", "rich"}


def test_help_and_data_preparation_do_not_wait_for_torch() -> None:
    for code in ("import dualscore.cli", "import dualscore.shards", "import data_prep.cli"):
        check = f"import sys; sys.path[:0] = ['src', '.']; {code}; print('torch' in sys.modules)"
        assert subprocess.check_output([sys.executable, "-c", check], text=True, cwd=ROOT).strip() == "False"


SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_evaluated_unpickled_or_seeded_globally(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "np.random.seed",
                "random.seed",
            }
            if name == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    assert len(path.read_text().splitlines()) <= 320


def test_only_the_assembler_builds_from_configurations() -> None:
    for path in SOURCES:
        if path.name not in {"assemble.py", "experiment.py"}:
            text = path.read_text()
            assert "OmegaConf" not in text or path.name == "config.py", path
            assert "importlib.import_module" not in text, path


def test_git_ignores_no_source() -> None:
    """A clone must hold everything: an ignored folder name once swallowed a part of the package."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = [str(p.relative_to(ROOT)) for p in (*SOURCES, *(ROOT / "tests" / "data").iterdir())]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *files], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ignored.stdout == ""


def test_make_prints_its_targets() -> None:
    printed = subprocess.check_output(["make", "--no-print-directory"], text=True, cwd=ROOT)
    for target in ("train", "test", "data", "evaluate", "tensorboard", "lint"):
        assert f"  {target} " in printed


@pytest.mark.parametrize(
    ("module", "absent"), [("dualscore.experiment", "torch"), ("dualscore.checkpoints", "lightning")]
)
def test_nothing_waits_for_a_library_that_it_does_not_need(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
