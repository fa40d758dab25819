"""Whole commands on folders and machines as people have them: every file is counted, or the limit named."""

import csv
import errno
import json
import os
import re
import struct
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import SemLock
from pathlib import Path

import pytest
from PIL import Image

from data_prep.sources.demo import TRAIN
from data_prep.sources.photographs import Photograph, inspect
from dualscore.data.shards import Manifest
from dualscore.data.workers import _leaving
from dualscore.pictures.walk import Entry, walk
from dualscore.redaction import complaint
from dualscore.scoring.image_files import ImageFiles, Size
from fakes import photograph, real_images
from prep_helpers import names_of
from workspace import ROOT, TINY, Workspace, command

RELEASED = ROOT / "tests/data/energy_small.pth.tar"
SOUND = {f"{number:02d}.png" for number in range(44)} | {os.fsdecode(b"caf\xe9.png"), "odd.png"}
BAD = {"dangling.png", "loop.png", "pipe.jpg", "cut.jpg", "x.heic", "gone", "private"}
OTHERS = {"notes.txt", "a.xmp", "IMG_1"}
PASSED = "passed over: 3 files that are no pictures by name (no ending, .txt, .xmp)"


def spoil(folder: Path, like: Image.Image) -> None:
    """Put everything that is no sound picture into a folder, and one with damaged EXIF that is."""
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "gone").symlink_to("/not/mounted")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "x.heic").write_bytes(b"whatever")
    for name in OTHERS:
        (folder / name).write_text("no picture")
    text = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 274, 2, 4) + b"6\0\0\0\0\0\0\0"
    like.save(folder / "odd.png", exif=b"Exif\0\0" + text)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "private").mkdir()


def pictures(folder: Path, seed: int) -> Path:
    """46 pictures of 16×16 among bad entries."""
    folder.mkdir()
    images = [Image.fromarray(x.transpose(1, 2, 0)) for x in real_images(46, 16, seed)]
    for name, image in zip(sorted(SOUND), images, strict=True):
        image.save(folder / name)
    spoil(folder, images[-1])
    return folder


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("as people have them") / "album", seed=3)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs to prepare among bad entries."""
    folder = tmp_path_factory.mktemp("as people have them") / "photographs"
    folder.mkdir()
    for name in list(TRAIN)[:4]:
        photograph(name, 64).save(folder / f"{name}.png")
    spoil(folder, photograph("coffee", 300).crop((150, 150, 214, 214)))
    return folder


def first_column(file: Path) -> list[str]:
    with file.open(newline="", errors="surrogateescape") as rows:
        return [Path(row[0]).name for row in csv.reader(rows)][1:]


@pytest.mark.usefixtures("private")
def test_score_counts_every_file(workspace: Workspace, trained_demo: Path, album: Path) -> None:
    said = workspace.run("score", str(trained_demo / "runs/patches_dual"), str(album), "--workers", "0")
    assert sorted(first_column(Path("scores/scores.csv"))) == sorted(SOUND)
    assert sorted(first_column(Path("scores/failures.csv"))) == sorted(BAD)
    assert PASSED in said
    assert len(SOUND | BAD | OTHERS) == sum(not name.startswith(".") for name in os.listdir(album))
    summary = json.loads(Path("scores/scores.json").read_text())
    assert (summary["images"], summary["failed"]) == (46, 7)


@pytest.mark.usefixtures("private")
def test_ood_counts_every_file(workspace: Workspace, trained_demo: Path, album: Path, tmp_path: Path) -> None:
    said = workspace.run(
        "ood", str(trained_demo / "runs/patches_dual"), "--in", str(album),
        "--out", str(pictures(tmp_path / "other", seed=4)), "--workers", "0", "--psnr", "20",
    )  # fmt: skip
    assert sorted(first_column(Path("ood/ood.csv"))) == sorted([*SOUND, *SOUND])
    assert sorted(first_column(Path("ood/failures.csv"))) == sorted([*BAD, *BAD])
    assert said.count(PASSED) == 2


def test_a_file_that_is_given_twice_is_scored_once(
    workspace: Workspace, trained_demo: Path, album: Path, tmp_path: Path
) -> None:
    model, first, second = (
        str(trained_demo / "runs/patches_dual"),
        str(album / "00.png"),
        str(album / "01.png"),
    )
    (tmp_path / "near").symlink_to(album)
    given = [first, first, str(tmp_path / "near/00.png"), second]
    said = workspace.run("score", model, *given, "--workers", "0")
    assert first_column(Path("scores/scores.csv")) == ["00.png", "01.png"]
    assert first_column(Path("scores/failures.csv")) == ["00.png", "00.png"]
    assert "left out: 2 images; the first, " in said
    assert "2 photographs" in said


@pytest.mark.usefixtures("private")
def test_ood_counts_a_file_once(
    workspace: Workspace, trained_demo: Path, album: Path, tmp_path: Path
) -> None:
    other = pictures(tmp_path / "other", seed=4)
    workspace.run(
        "ood", str(trained_demo / "runs/patches_dual"), "--in", str(album), str(album / "00.png"),
        "--out", str(other), str(other), "--workers", "0", "--psnr", "20",
    )  # fmt: skip
    assert sorted(first_column(Path("ood/ood.csv"))) == sorted([*SOUND, *SOUND])
    assert sorted(first_column(Path("ood/failures.csv"))) == sorted([*BAD, "00.png", *BAD, *SOUND, *BAD])


@pytest.mark.usefixtures("private")
def test_convert_counts_every_file(workspace: Workspace, album: Path) -> None:
    said = workspace.run("convert", str(RELEASED), "--images", str(album), "--workers", "0")
    assert re.search("on 46 images of .*; 7 left out", said)
    assert PASSED in said


@pytest.mark.parametrize("kind", [["denoise", "--psnr", "20"], ["inpaint"]])
def test_drawing_names_what_it_leaves_out(
    workspace: Workspace, trained_demo: Path, album: Path, kind: list[str]
) -> None:
    given = [str(album / name) for name in sorted([*BAD, *sorted(SOUND)[-5:]])]
    few = ["--count", "1", "--steps", "3", "--method", "langevin"]
    said = workspace.run(kind[0], str(trained_demo / "runs/patches_dual"), *given, *few, *kind[1:])
    (found,) = Path.cwd().glob("*/samples.json")
    used = {Path(row["of"]).name for row in json.loads(found.read_text())["samples"]}
    assert used == set(sorted(SOUND)[-5:])
    assert all(f"left out: {album / name}: " in said for name in BAD)


@pytest.mark.usefixtures("private")
def test_a_build_counts_every_file(workspace: Workspace, photographs: Path) -> None:
    said = workspace.run(
        "data", "build", "folder", "--src", str(photographs), "--out", "shards", "--workers", "1"
    )
    names = sum(names_of(Manifest.load(Path("shards"))).values(), ())
    assert sorted(names) == sorted([*(f"{name}.png" for name in list(TRAIN)[:4]), "odd.png"])
    assert all(f"left out: {name} " in said for name in BAD)
    assert f"warning: {PASSED}" in said


def test_a_folder_of_other_files_alone_holds_no_photograph(workspace: Workspace) -> None:
    Path("empty").mkdir()
    Path("empty/a.txt").touch()
    line = workspace.fail("data", "build", "folder", "--src", "empty", "--out", "shards")
    assert "holds no photograph" in line


COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "score": lambda run, album, _: ["score", str(run), str(album), "--workers", "0"],
    "score by processes": lambda run, album, _: ["score", str(run), str(album), "--workers", "2"],
    "convert": lambda _, album, __: ["convert", str(RELEASED), "--images", str(album), "--workers", "1"],
    "denoise": lambda run, album, _: [
        "denoise", str(run), str(album / "00.png"), str(album / "pipe.jpg"), "--steps", "2"
    ],
    "build": lambda _, __, photographs: [
        "data", "build", "folder", "--src", str(photographs), "--out", "shards", "--workers", "1"
    ],
    "build by processes": lambda _, __, photographs: [
        "data", "build", "folder", "--src", str(photographs), "--out", "shards", "--workers", "2"
    ],
}  # fmt: skip


COUNTED = {
    "score": "the mean of 46 images; ",
    "convert": "on 46 images of ",
    "denoise": "left out: ",
    "build": "5 photographs of one's own",
}
DEEP = "x" * 90


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("limit", [16, 24, 32, 48])
def test_few_open_files_lose_nothing_or_are_named(
    workspace: Workspace, trained_demo: Path, album: Path, photographs: Path, name: str, limit: int
) -> None:
    code = f"import os; os.chdir({str(workspace.folder)!r})\n"
    code += f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    done = command(*COMMANDS[name](trained_demo / "runs/patches_dual", album, photographs), before=code)
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        assert COUNTED[name.partition(" ")[0]] in done.stdout
        return
    assert done.stderr.count("\n") == 1
    assert f"the limit is {limit}" in done.stderr
    assert "raise it (ulimit -n" in done.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if "processes" in name])
def test_a_temporary_folder_of_a_long_name_keeps_nothing(
    workspace: Workspace, trained_demo: Path, album: Path, photographs: Path, name: str
) -> None:
    (workspace.folder / DEEP).mkdir()
    code = f"import os, tempfile; os.chdir({str(workspace.folder)!r}); tempfile.tempdir = None"
    arguments = COMMANDS[name](trained_demo / "runs/patches_dual", album, photographs)
    done = command(*arguments, before=code, TMPDIR=str(workspace.folder / DEEP))
    assert done.returncode == 0, done.stderr
    assert COUNTED[name.partition(" ")[0]] in done.stdout


def test_too_many_open_files_are_no_fault_of_a_pictures(
    album: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x.png")

    size, found = Size(3, 16, 16), Photograph("coffee.png", photographs / "coffee.png")
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", fail)
        for read in (
            lambda: ImageFiles([album], album, size, 4)[[Entry(album / "00.png")]],
            lambda: inspect((found, 16)),
        ):
            with pytest.raises(OSError, match="Too many open files") as raised:
                read()
            assert "x.png: Too many open files: the limit is " in complaint(raised.value)
        patch.setattr(os, "scandir", fail)
        with pytest.raises(OSError, match="Too many open files"):
            list(walk(album))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["score by processes", "build by processes", "train"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT, errno.EAGAIN])
def test_where_no_process_can_be_started_what_they_need_is_named(
    workspace: Workspace,
    trained_demo: Path,
    album: Path,
    photographs: Path,
    demo_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
) -> None:
    """As where /dev/shm is full or not there, where semaphores are made, or no more processes are allowed."""
    start, started = BaseProcess.start, list[BaseProcess]()

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    def start_one(process: BaseProcess) -> None:
        if started:
            fail()
        started.append(process)
        start(process)

    _leaving.cache_clear()
    if number == errno.EAGAIN:
        monkeypatch.setattr(BaseProcess, "start", start_one)
    else:
        monkeypatch.setattr(SemLock, "__init__", fail)
    train = ["train", "patches_dual", *TINY, f"data.path={demo_shards}", "data.workers=2"]
    train += ["optim.warmup_steps=0", "trainer.max_steps=2", "trainer.validate_every=2"]
    known = {**COMMANDS, "train": lambda *_: train}
    line = workspace.fail(*known[name](trained_demo / "runs/patches_dual", album, photographs))
    assert f"processes cannot be started ({os.strerror(number)}): they need room in /dev/shm" in line
    for process in started:
        process.join(9)
        assert process.exitcode is not None


@pytest.mark.parametrize(
    "words", [("train", "patches_dual"), ("data", "build", "demo", "--out", "x"), ("status",)]
)
def test_a_current_folder_that_was_removed_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    before = f"import os; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})"
    done = command(*words, before=before)
    assert done.returncode == 1
    assert done.stderr == "error: the current folder was removed: go to one that is there (cd)\n"
