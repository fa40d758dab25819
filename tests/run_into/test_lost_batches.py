"""What loader processes cannot send: never passed over, told at once, whatever the limits of the machine."""

import multiprocessing
import multiprocessing.util
import os
import re
import shutil
import signal
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualscore.data.datamodule import Batching, ResumableLoader
from dualscore.data.loader import Sent, deaths_told
from dualscore.data.reader import EvenlySpacedBatches, ShardDataModule, TrainingBatches
from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from dualscore.evaluation.session import Session
from dualscore.scoring import image_files
from dualscore.terminal.console import shared_console
from workspace import ROOT, TINY, Workspace, command, run_code

DEEP = "x" * 90
# What a test changes in this process, only a fork of it knows.
FORKED = pytest.mark.parametrize("start_method", ["fork"], indirect=True)
SETTINGS = [*TINY, "optim.warmup_steps=0", "trainer.max_steps=2", "trainer.validate_every=1"]


def data(folder: Path, workers: int = 2) -> ShardDataModule:
    batching = Batching(32, 16, workers, 1, 0, 64, 16)
    return ShardDataModule(folder, Manifest.load(folder), batching, shuffle_buffer=64)


def contents(batches: Any) -> dict[int, bytes]:
    """The images by their positions."""
    return {
        p: image.numpy().tobytes()
        for batch in batches
        for p, image in zip(batch.position.tolist(), batch.image, strict=True)
    }


@pytest.mark.usefixtures("start_method")
def test_images_are_the_same_however_processes_are_started(demo_shards: Path) -> None:
    alone = contents(data(demo_shards, 0).evenly_spaced("val", 48, 16))
    assert len(alone) == 48
    assert contents(data(demo_shards).evenly_spaced("val", 48, 16, workers=2)) == alone


def test_a_temporary_folder_of_a_long_name_keeps_no_batch(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DEEP).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / DEEP))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(tmp_path / DEEP))  # type: ignore[attr-defined]
    assert len(contents(data(demo_shards).evenly_spaced("val", 48, 16, workers=2))) == 48
    assert len(contents(islice(data(demo_shards).epoch_loader(0, 0), 3))) > 64
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    files = image_files.ImageFiles([tmp_path], tmp_path / "out", image_files.Size(3, 8, 8), 2)
    with image_files.read_batches(files, 2, image_files.Problems(), shared_console(), "read") as chunks:
        assert [len(chunk.paths) for chunk in chunks] == [2, 2, 1]


def test_where_processes_cannot_be_started_the_temporary_folder_is_named(
    demo_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / DEEP).mkdir()
    before = (
        "import multiprocessing, tempfile; multiprocessing.set_start_method('forkserver')\n"
        "tempfile.tempdir = None  # of the process that this one is a fork of"
    )
    os.symlink(ROOT / "experiments", tmp_path / "experiments")
    done = command(
        "train", "patches_dual", *SETTINGS, f"data.path={demo_shards}", "data.workers=1",
        "--runs", str(tmp_path / "runs"), before=f"import os; os.chdir({str(tmp_path)!r})\n{before}",
        TMPDIR=str(tmp_path / DEEP),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    if hasattr(multiprocessing.util, "_get_base_temp_dir"):  # a newer Python, which then takes another folder
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert f"a TMPDIR of a short name (now {tmp_path / DEEP})" in done.stderr


@pytest.mark.parametrize(("limit", "workers"), [(48, 2), (32, 2), (24, 0)])
def test_too_few_open_files_are_told_before_anything_is_lost(
    workspace: Workspace, demo_shards: Path, limit: int, workers: int
) -> None:
    before = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    done = command(
        "train", "patches_dual", *SETTINGS, f"data.path={demo_shards}", f"data.workers={workers}",
        "data.streams=16", "--runs", str(workspace.folder / "runs"), before=before,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"the limit is {limit}: raise it (ulimit -n" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_low_soft_limit_is_raised(demo_shards: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 400))\n"
        "from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_lost_batches import *\n"
        "batches = data(Path(sys.argv[1])).epoch_loader(0, 0)\n"
        "print(len(next(iter(batches)).image), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = run_code(code, str(demo_shards), str(ROOT / "tests/run_into"))
    assert done.stdout.split() == ["32", "400", "400"], done.stderr


def test_a_shard_is_not_blamed_for_files_that_are_too_many(demo_shards: Path) -> None:
    code = (
        "import os, resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_lost_batches import *\n"
        "batches = iter(data(Path(sys.argv[1]), 0).epoch_loader(0, 0))\n"
        "low = len(os.listdir('/dev/fd')) + 4\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (low, low))\n"
        "try: next(batches)\n"
        "except DataError as error: print(error)"
    )
    done = run_code(code, str(demo_shards), str(ROOT / "tests/run_into"))
    assert "cannot be opened (Too many open files)" in done.stdout, done.stderr


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), ConnectionResetError(104, "unexpected EOF")])
def test_a_fork_server_that_was_killed_is_one_line(
    demo_shards: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise error

    monkeypatch.setattr(multiprocessing.Process, "start", killed)
    with pytest.raises(DataError, match=r"cannot be started \(unexpected EOF\)"):
        list(data(demo_shards).evenly_spaced("val", 64, 16, workers=1))


def fewer(reader: Any) -> Any:
    """What yields all of a reader's batches but the second."""
    whole = reader.__iter__
    return lambda self: (batch for number, batch in enumerate(whole(self)) if number != 1)


@FORKED
@pytest.mark.usefixtures("start_method")
def test_a_batch_that_is_missing_is_an_error(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (EvenlySpacedBatches, TrainingBatches):
        monkeypatch.setattr(reader, "__iter__", fewer(reader))
    with pytest.raises(DataError, match="sent 32 of 64 images"):
        list(data(demo_shards).evenly_spaced("val", 64, 16, workers=2))
    module = data(demo_shards)
    batches = ResumableLoader(module)
    batches.load_state_dict({"epoch": 0, "consumed": module.batches - 6})
    with pytest.raises(DataError, match="sent 128 of 192 images"):
        list(batches)


@FORKED
@pytest.mark.usefixtures("start_method")
def test_no_figure_is_of_fewer_images(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EvenlySpacedBatches.__iter__
    monkeypatch.setattr(EvenlySpacedBatches, "__iter__", lambda self: islice(whole(self), 1))
    settings = [*SETTINGS, f"data.path={demo_shards}", "data.workers=1", "trainer.validate_images=80"]
    line = workspace.fail("train", "patches_dual", *settings)
    assert re.search(r"sent \d+ of 80 images", line)


def test_a_validation_that_ends_early_has_no_figure(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualscore.runs.launch.check_settings", lambda _: None)
    monkeypatch.setenv("PL_TRAINER_LIMIT_VAL_BATCHES", "1")  # what any consumer may do that stops by itself
    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.validate_images=640"]
    line = workspace.fail("train", "patches_dual", *settings)
    assert re.search(r"a validation measured \d+ of 640 images", line)
    assert not list(workspace.folder.rglob("*.ckpt"))


def test_an_evaluation_of_fewer_rows_has_no_figure(
    workspace: Workspace, trained_demo: Path, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Session._batches
    monkeypatch.setattr(Session, "_batches", lambda *stage: islice(whole(*stage), 1))
    checkpoint = next(trained_demo.rglob("best.ckpt"))
    copy = workspace.folder / "model.ckpt"
    shutil.copyfile(checkpoint, copy)
    settings = [*SETTINGS, f"data.path={demo_shards}", "evaluate.batch_size=16", "evaluate.yardsticks=[]"]
    line = workspace.fail("evaluate", "patches_dual", "--checkpoint", str(copy), *settings)
    assert re.search(r"\d+ of \d+ rows were measured", line)


@FORKED
@pytest.mark.usefixtures("start_method")
def test_an_evaluation_counts_its_images(
    workspace: Workspace, trained_demo: Path, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EvenlySpacedBatches.__iter__
    monkeypatch.setattr(EvenlySpacedBatches, "__iter__", lambda self: islice(whole(self), 1))
    checkpoint = next(trained_demo.rglob("best.ckpt"))
    settings = [*SETTINGS, f"data.path={demo_shards}", "evaluate.batch_size=16", "data.workers=1"]
    line = workspace.fail("evaluate", "patches_dual", "--checkpoint", str(checkpoint), *settings)
    assert re.search(r"sent 16 of \d+ images", line)


@FORKED
@pytest.mark.usefixtures("start_method")
def test_a_process_that_cannot_send_says_why_and_the_run_ends(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Sent) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sent, "__reduce__", fails)
    with pytest.raises(DataError, match="a loader process died"), deaths_told():
        list(data(demo_shards).evenly_spaced("val", 64, 16, workers=2))
    assert "cannot send a batch (OSError: [Errno 28] No space left on device)" in capfd.readouterr().err


def test_a_process_that_is_killed_ends_the_run(demo_shards: Path) -> None:
    def kill() -> None:
        of_others = set(multiprocessing.active_children())  # an earlier test's may be on their way out
        batches = iter(data(demo_shards).epoch_loader(0, 0))
        next(batches)
        ours = set(multiprocessing.active_children()) - of_others
        os.kill(ours.pop().pid or 0, signal.SIGKILL)
        list(batches)

    with pytest.raises(DataError, match="a loader process died"), deaths_told():
        kill()
