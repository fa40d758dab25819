"""The house's own rules: versions in step, the core free of Lightning, nothing dangerous in the code."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

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
UNLOCKED = "inverse"
"""The extra whose torchvision goes with one build of torch alone."""
DECLARED = [Requirement(r) for r in PROJECT["dependencies"]] + [
    Requirement(r)
    for name, extra in PROJECT["optional-dependencies"].items()
    if name != UNLOCKED
    for r in extra
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


PACKAGE = ROOT / "src" / "dualscore"


def test_a_files_name_says_which_it_is() -> None:
    names = [path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names)), "a file name twice"


@pytest.mark.parametrize(
    ("reason", "on_ci", "status"),
    [("nobody listed this", "1", 1), ("nobody listed this", "", 0), ("it has no energy", "1", 0)],
)
def test_on_ci_a_skip_for_an_unlisted_reason_fails(
    tmp_path: Path, reason: str, on_ci: str, status: int
) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    pytest.skip({reason!r})\n")
    environment = os.environ | {"DUALSCORE_CI": on_ci, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "skips", "-p", "no:xdist", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout
    assert ("does not list: ['Skipped: nobody listed this']" in done.stdout) == (status == 1)


CORE_ROOMS = ("networks", "likelihood", "measuring", "sampling", "coding")
CORE_FILES = (
    "noise", "energy", "gaussian", "objective", "densities", "images", "errors",
    "model", "denoisers", "constant", "origin",
)  # fmt: skip
CORE = sorted(
    [PACKAGE / f"{name}.py" for name in CORE_FILES]
    + [path for room in CORE_ROOMS for path in (PACKAGE / room).glob("*.py")]
)
"""The mathematics: a closed list, so that a new file in its rooms is held to the rules too."""
BESIDE_TORCH = {
    "likelihood/estimates.py": {"scipy"},  # quantiles of Student's t
    "likelihood/ode.py": {"torchdiffeq"},  # an adaptive solver
    "coding/stack.py": {"constriction", "numpy"},  # an entropy coder, and the arrays that it takes
}


def module_name(path: Path) -> str:
    """`dualscore.likelihood` of likelihood/__init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            folder = PACKAGE.parent.joinpath(*str(node.module).split("."))
            modules = {a.name for a in node.names if (folder / f"{a.name}.py").exists()}
            found |= {f"{node.module}.{name}" for name in modules} or {str(node.module)}
    return found


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_the_core_imports_torch_and_itself_only(path: Path) -> None:
    own = {module_name(core) for core in CORE}
    others = {name for name in imported(path) if name not in own}
    tops = {name.partition(".")[0] for name in others} - set(sys.stdlib_module_names) - {"torch"}
    assert tops == BESIDE_TORCH.get(str(path.relative_to(PACKAGE)), set()), others


def public(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """A file's public functions, classes and methods, by their dotted names."""

    def below(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Any]]:
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from below(child, f"{prefix}{child.name}.")

    yield from below(ast.parse(path.read_text()), "")


HOOKS = PACKAGE / "training" / "callbacks"
"""Methods there are Lightning's hooks, or one base class's, described once."""
SHAPE = re.compile(r"shape|scalar|\((count|[A-Zn\d][\w']*)(, ?[A-Z\d][\w']*)*,?\)")
"""Words of a docstring that tell a tensor's shape: (B, C, H, W), (B,), a scalar, any shape."""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "the module has none"
    missing = [name for name, node in public(path) if not ast.get_docstring(node)]
    assert [name for name in missing if HOOKS not in path.parents or "." not in name] == []


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_what_takes_or_gives_tensors_in_the_core_tells_their_shapes(path: Path) -> None:
    for name, node in public(path):
        if isinstance(node, ast.FunctionDef):
            arguments = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)]
            types = [ast.unparse(a) for a in (*arguments, node.returns) if a is not None]
            if any("Tensor" in t for t in types):
                assert SHAPE.search(ast.get_docstring(node) or ""), f"{name} does not say of which shape"


def test_the_core_needs_torch_only() -> None:
    """Imported alone, the core and the released networks bring no Lightning, webdataset or configuration."""
    names = [*(module_name(path) for path in CORE), "dualscore.model_files.released"]
    code = f"import sys; import {', '.join(names)}; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT / "src").split())
    tops = {name.partition(".")[0] for name in loaded}
    assert "torch" in tops
    assert not tops & {"lightning", "pytorch_lightning", "webdataset", "omegaconf", "torchmetrics", "rich"}


def test_help_and_data_preparation_do_not_wait_for_torch() -> None:
    for code in ("import dualscore.cli", "import dualscore.data.shards", "import data_prep.cli"):
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


ROOMS = (
    "errors", "files", "redaction", "bars", "shipped", "cores", "devices", "settings",
    "noise", "gaussian", "energy", "objective", "networks", "densities", "images",
    "denoisers", "likelihood", "constant", "origin", "model", "sampling",
    "adapters", "coding", "measuring",
    "pictures", "data", "network_table", "runs", "dashboard", "training", "assemble",
    "model_files", "evaluation", "figures", "scoring", "compression", "draw_images", "publishing", "study",
    "cluster",
    "__init__", "terminal", "report_tables", "telling", "train_experiment", "commands", "cli", "task",
    "__main__",
)  # fmt: skip
"""The files and folders of the package's first level, from bottom to top."""


def own_imports(path: Path) -> set[str]:
    """The package's own modules that a file imports."""
    return {name for name in imported(path) if name == "dualscore" or name.startswith("dualscore.")}


def test_a_room_imports_only_rooms_below_it() -> None:
    """So that each can be read without those above it, and none asks for the terminal or a command."""
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert sorted(ROOMS) == sorted(there)
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in own_imports(path):
            other = f"{name}.__init__".split(".")[1]
            if ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_files_import_one_another_in_one_direction() -> None:
    graph = {module_name(path): own_imports(path) - {module_name(path)} for path in PACKAGE.rglob("*.py")}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names a circle


def test_the_drawing_of_the_layout_is_the_order_of_the_rooms() -> None:
    _, _, drawing = (ROOT / "CONTRIBUTING.md").read_text().partition("## The layout\n")
    named = re.findall(r"^    ([a-z_]+)(?:/|\.py) ", drawing.partition("\n## ")[0], re.MULTILINE)
    assert named == [room for room in ROOMS if not room.startswith("__")]


def test_the_readme_names_every_room() -> None:
    _, _, listed = (ROOT / "README.md").read_text().partition("    src/dualscore/\n")
    named = set(re.findall(r"[a-z_]+(?:/|\.py)", listed.partition("    data_prep/")[0]))
    package = ROOT / "src" / "dualscore"
    rooms = {
        f"{p.name}/" if p.is_dir() else p.name for p in package.iterdir() if p.name[:2] not in ("__", ".")
    }
    assert named == {room for room in rooms if room.endswith(("/", ".py"))}


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
    ("module", "absent"),
    [("dualscore.settings.experiment", "torch"), ("dualscore.model_files.loading", "lightning")],
)
def test_nothing_waits_for_a_library_that_it_does_not_need(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
