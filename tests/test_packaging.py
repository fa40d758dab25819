"""What is given away: the wheel and the source archive, what is in them, and that they suffice."""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from dualscore.model_files.exported import CARD_FILE, MODEL_FILE
from dualscore.shipped.boxed import BOXED
from installed import SHIPPED, Installation, build, copy_source, run_into, use
from workspace import ROOT


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, without git."""
    return copy_source(tmp_path_factory.mktemp("clean") / "source")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    installation = Installation(tmp_path_factory.mktemp("installed"))
    installation.lend(wheel)
    return installation


@pytest.mark.long
def test_the_wheel_holds_the_packages_and_what_they_need_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        described = message_from_string(archive.read(metadata).decode())
        assert metadata.replace("METADATA", "licenses/LICENSE") in archive.namelist()
        assert (
            "dualscore = dualscore.cli:main"
            in archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
        )
    code = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.py")}
    code |= {str(p.relative_to(ROOT)) for p in (ROOT / "data_prep").rglob("*.py")}
    shipped = [p.relative_to(ROOT) for kind in SHIPPED for p in (ROOT / kind).glob("*.yaml")]
    files = {f"dualscore/shipped/{path}" for path in shipped}
    assert len(files) > 20
    boxed = {f"dualscore/shipped/models/{name}/{file}" for name in BOXED for file in (MODEL_FILE, CARD_FILE)}
    assert names == code | files | boxed | {"dualscore/py.typed", "dualscore/cluster/job.sh"}
    assert str(parse_wheel_filename(wheel.name)[1]) == described["Version"]
    assert described["License-Expression"] == "BSD-3-Clause"
    assert {"data", "dev"} <= set(described.get_all("Provides-Extra", []))


@pytest.mark.long
def test_the_source_archive_holds_what_git_does_and_builds_the_same_wheel(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    """Made in a repository, as a release is; built without one."""
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["tag", "v0.9"]):
        _git(source, *command)
    made = build(source, tmp_path / "dist", "--sdist")
    tracked = set(_git(source, "ls-files").split())
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
        archive.extractall(tmp_path, filter="data")
    assert names - tracked == {"PKG-INFO", "setup.cfg"} | {n for n in names if ".egg-info/" in n}
    assert tracked <= names
    again = build(tmp_path / "dualscore-0.9", tmp_path / "again", "--wheel")
    assert again.name.startswith("dualscore-0.9-")
    with zipfile.ZipFile(again) as mine, zipfile.ZipFile(wheel) as other:
        assert {n for n in mine.namelist() if "dist-info" not in n} == {
            n for n in other.namelist() if "dist-info" not in n
        }


def _git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    return subprocess.check_output(["git", *who, *command], cwd=folder, text=True)


@pytest.mark.long
def test_the_version_comes_from_git_or_from_nothing(tmp_path: Path) -> None:
    """At a tag, after it, in a shallow clone, in archives with and without a tag, in a bare copy."""

    def version(folder: Path) -> str:
        command = [sys.executable, "-W", "ignore", "-m", "setuptools_scm"]
        return subprocess.check_output(command, cwd=folder, text=True, stderr=subprocess.DEVNULL).strip()

    def archived(name: str) -> str:
        _git(tmp_path / "origin", "archive", f"--output={tmp_path / name}.tar", "HEAD")
        with tarfile.open(tmp_path / f"{name}.tar") as archive:
            archive.extractall(tmp_path / name, filter="data")
        return version(tmp_path / name)

    origin = tmp_path / "origin"
    origin.mkdir()
    for name in ("pyproject.toml", ".gitattributes", ".git_archival.txt"):
        (origin / name).write_bytes((ROOT / name).read_bytes())
    assert version(origin) == "0.1.dev0"
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        _git(origin, *command)
    commit = _git(origin, "rev-parse", "--short=7", "HEAD").strip()
    assert version(origin).startswith(f"0.1.dev1+g{commit}")
    assert archived("untagged") == "0.1.dev0"
    _git(origin, "tag", "v1.2.3")
    assert version(origin) == archived("tagged") == "1.2.3"
    _git(origin, "commit", "-q", "--allow-empty", "-m", "second")
    assert version(origin).startswith("1.2.4.dev1+g")
    assert archived("after").startswith("1.2.4.dev1+g")
    _git(tmp_path, "clone", "-q", "--depth=1", origin.as_uri(), "shallow")
    assert version(tmp_path / "shallow").startswith("0.1.dev1+g")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_wheel_alone_suffices(installed: Installation, wheel: Path) -> None:
    use(installed, str(parse_wheel_filename(wheel.name)[1]))
    run_into(installed)


@pytest.mark.long
def test_the_photographs_of_the_demo_are_an_extra(installed: Installation) -> None:
    hidden = "import sys; sys.modules['skimage'] = None; sys.argv = ['dualscore', *sys.argv[1:]]"
    code = f"{hidden}; from dualscore.cli import main; sys.exit(main())"
    command = ["python", "-c", code, "data", "build", "demo", "--out", "none"]
    assert installed.call(*command, status=1).strip().endswith('pip install "dualscore[data]"')


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_types_of_an_installed_package_are_seen(installed: Installation, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import dualscore\n\nbits: int = dualscore.load('runs/a').bits_per_dim\nprint(bits)\n")
    python = str(installed.prefix / "bin" / "python")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, str(script)]
    command += ["--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'installed'}"]  # torch takes long
    found = subprocess.run(
        command, cwd=tmp_path, env=installed.environ, capture_output=True, text=True, check=False
    ).stdout
    (line,) = [line for line in found.splitlines() if ": error:" in line]
    assert "script.py:3" in line
    assert "Tensor" in line


def test_building_needs_nothing_that_the_lock_lacks() -> None:
    """make install builds without isolation."""
    locked = (ROOT / "requirements.lock").read_text()
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        assert re.search(rf"^{re.escape(requirement.partition('>')[0])}==", locked, re.MULTILINE)


def test_every_declared_version_has_a_lower_bound_to_test() -> None:
    """What make test-oldest installs is allowed by what is declared."""
    versions = runpy.run_path(str(ROOT / ".ci" / "versions"))
    declared = versions["declared"]()
    assert len(declared) > 25
    for line in declared:
        name, _, bound = versions["oldest"](line).partition("==")
        assert Requirement(line).name == name
        assert Requirement(line).specifier.contains(bound)


HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
}


def test_a_commit_is_looked_at_by_the_commands_of_make_lint() -> None:
    printed = subprocess.check_output(["make", "-n", "lint", f"VENV={sys.prefix}"], text=True, cwd=ROOT)
    commands = re.findall(r"/bin/((?:ruff|mypy|pydoclint)\b.*)", printed)
    assert len(commands) == 4
    assert set(commands) <= {hook["entry"].removeprefix(".ci/env ") for hook in HOOKS.values()}


@pytest.mark.parametrize(
    ("hook", "name", "content"),
    [
        ("ruff", "bad.py", "import os\n"),
        ("ruff-format", "bad.py", "x = [ 1 ]\n"),
        ("large", "bad.bin", "0" * 600_000),
        ("conflicts", "bad.txt", "<<<<<<< mine\na\n=======\nb\n>>>>>>> theirs\n"),
        ("yaml", "bad.yaml", "a: [1\n"),
    ],
)
def test_hooks_stop_a_commit(hook: str, name: str, content: str, tmp_path: Path) -> None:
    """Each in a repository with one good file, then with a bad one."""
    (tmp_path / ".ci").mkdir()
    for copied in (".pre-commit-config.yaml", ".ci/env", "pyproject.toml"):
        (tmp_path / copied).write_bytes((ROOT / copied).read_bytes())
    (tmp_path / ".ci" / "env").chmod(0o755)
    (tmp_path / "good.py").write_text('"""Nothing."""\n')
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "-A")
    assert _look(hook, tmp_path).returncode == 0
    (tmp_path / name).write_text(content)
    _git(tmp_path, "add", "-A")
    process = _look(hook, tmp_path)
    assert process.returncode == 1
    assert "bad" in process.stdout


def _look(hook: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pre_commit", "run", hook, "--all-files"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # there is no .venv in the folder
    environ = {**os.environ, "PATH": path}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_the_citation_is_complete() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert "version" not in content  # git alone says which
    for reference in content["references"]:
        assert {"type", "title", "authors"} <= set(reference)
