"""A build that was stopped anywhere ends with the same bytes as one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import data_prep.build as build_module
from data_prep.plan import Images
from data_prep.sources.batches import BatchUnit
from dualscore.errors import DataError
from fakes import write_official_imagenet
from prep_helpers import build, contents

ROOT = Path(__file__).parents[2]


def _command(out: Path, src: Path) -> list[str]:
    arguments = ["build", "imagenet32", "--src", str(src), "--out", str(out), "--images-per-shard", "10"]
    return [sys.executable, "-m", "data_prep", *arguments, "--workers", "2"]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_official_imagenet(folder, 32, 800, 40, batches=4)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    build("imagenet32", out, src=source, images_per_shard=10)
    return contents(out)


def test_killed_build_goes_on(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(_command(out, source), env=_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not len(list(out.glob("*.tar"))) >= 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.002)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the build"
        time.sleep(0.02)
    made = len(list(out.glob("*.tar")))
    assert 5 <= made < 84
    assert not (out / "manifest.json").exists()
    subprocess.run(_command(out, source), env=_environment(), check=True, capture_output=True)
    assert contents(out) == uninterrupted


def _children(process: int) -> list[int]:
    """Child processes, where the system lists them; two workers at least."""
    listing = Path(f"/proc/{process}/task/{process}/children")
    if not listing.exists():
        return []
    children = [int(number) for number in listing.read_text().split()]
    assert len(children) >= 2
    return children


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("survived", [0, 1, 37])
def test_failing_source_leaves_a_build_that_goes_on(
    survived: int,
    source: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The source fails in the middle of writing a shard, after ``survived`` of them."""
    taken = 0
    original = BatchUnit.open

    @contextmanager
    def failing(self: BatchUnit) -> Iterator[Images]:
        with original(self) as images:

            class Failing:
                def take(self, start: int, stop: int):  # noqa: ANN202
                    nonlocal taken
                    taken += 1
                    if taken > survived:
                        raise DataError("the disk is gone")
                    return images.take(start, stop)

            yield Failing()

    monkeypatch.setattr(BatchUnit, "open", failing)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="the disk is gone"):
        build("imagenet32", out, src=source, images_per_shard=10)
    assert len(list(out.glob("*.tar"))) == survived
    assert not (out / "manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    monkeypatch.undo()
    build("imagenet32", out, src=source, images_per_shard=10)
    assert contents(out) == uninterrupted
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert before.items() <= after.items(), "a finished shard was made again"


def test_shard_without_sidecar_and_sidecar_without_shard_do_not_count(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise DataError("stopped before the manifest")

    monkeypatch.setattr(build_module, "_finish", stop)
    with pytest.raises(DataError, match="before the manifest"):
        build("imagenet32", out, src=source, images_per_shard=10)
    monkeypatch.undo()
    (out / "train-000003.tar").write_bytes(b"half")
    (out / "train-000004.tar").unlink()
    (out / ".build" / "train-000005.tar.npz").unlink()
    (out / ".build" / "train-000006.tar.npz").write_bytes(b"PK\3\4 half")
    (out / ".train-000007.tar.123.tmp").write_bytes(b"half")
    build("imagenet32", out, src=source, images_per_shard=10)
    assert contents(out) == uninterrupted


def test_complete_build_is_recognised_at_once(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    build("imagenet32", out, src=source, images_per_shard=100)
    before = contents(out)
    monkeypatch.setattr(build_module, "lay_out", lambda *_: pytest.fail("planned again"))
    started = time.perf_counter()
    build("imagenet32", out, src=source, images_per_shard=100)
    assert time.perf_counter() - started < 1
    assert "already complete" in capsys.readouterr().out
    assert contents(out) == before


def test_damaged_complete_build_is_made_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build("imagenet32", out, src=source, images_per_shard=100)
    before = contents(out)
    (out / "train-000001.tar").unlink()
    build("imagenet32", out, src=source, images_per_shard=100)
    assert contents(out) == before


def test_another_request_does_not_touch_a_build(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build("imagenet32", out, src=source, images_per_shard=100)
    before = contents(out)
    with pytest.raises(DataError, match=r"another request \(images_per_shard: there 100, now 50\)"):
        build("imagenet32", out, src=source, images_per_shard=50)
    with pytest.raises(DataError, match=r"another request .*dataset"):
        build("demo", out, size=32)
    assert contents(out) == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty \(it holds diary.txt\)"):
        build("demo", tmp_path, size=32)
    assert contents(tmp_path) == {"diary.txt": b"mine"}


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".build").mkdir(parents=True)
    with build_module._only_build(out), pytest.raises(DataError, match="built by another process"):
        build("demo", out, size=64)
    build("demo", out, size=64)
