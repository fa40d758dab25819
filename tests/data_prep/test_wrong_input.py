"""Each kind of wrong input gives one line and exit status 1, and leaves no manifest."""

import importlib.util
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from fakes import (
    encode,
    photograph,
    real_images,
    write_cifar10,
    write_imagenet64_png,
    write_official_imagenet,
)

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"


def _fail(tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, *more: str) -> str:
    arguments = [
        "build",
        dataset,
        "--src",
        str(tmp_path / "src"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert main([*arguments, *more]) == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert output.err.rstrip().endswith(errors[0]), "more than one line"
    return errors[0]


def _cut(name: str, keep: float = 0.5) -> Callable[[Path], object]:
    def change(src: Path) -> None:
        raw = (src / name).read_bytes()
        (src / name).write_bytes(raw[: int(len(raw) * keep)])

    return change


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda src: (src / name).write_bytes(content)


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda src: [(src / name).unlink() for name in names]


def _batch(**content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


TABLE = np.zeros((4, 3072), np.uint8)
TRAIN, VAL = "train_data_batch_1", "val_data"


@pytest.mark.parametrize(
    ("change", "file", "problem"),
    [
        (_remove(VAL), "src", "holds no val_data: add the validation file"),
        (
            _remove(TRAIN, "train_data_batch_2"),
            "src",
            "holds no train_data_batch_1 …: add the training files",
        ),
        (_remove(TRAIN, "train_data_batch_2", VAL), "src", "holds no train_data_batch_1 …, no val_data"),
        (_write(VAL, HTML), VAL, "is not a readable batch"),
        (_write(VAL, b""), VAL, "is not a readable batch"),
        (_cut(TRAIN), TRAIN, "is not a readable batch"),
        (_cut(TRAIN, 0.999), TRAIN, "is not a readable batch"),
        (
            _write(VAL, _batch(data=np.zeros((4, 768), np.uint8))),
            VAL,
            "images of 16×16 instead of images of 32×32",
        ),
        (_write(VAL, _batch(data=np.zeros((4, 100), np.uint8))), VAL, "a table of shape (4, 100)"),
        (_write(VAL, _batch(data=TABLE.astype(np.float32))), VAL, "data is float32, not uint8"),
        (_write(VAL, _batch(pixels=TABLE)), VAL, "has no array under the key 'data'"),
        (_write(VAL, _batch(labels=[1, 2])), VAL, "holds no table of images"),
        (_write(VAL, _batch(labels=[1], data=TABLE[:0])), VAL, "a table of shape (0, 3072)"),
        (_write("Imagenet32_train_npz.zip", HTML), "Imagenet32_train_npz.zip", "is a web page"),
        (_write("imagenet32_val.tar", HTML), "imagenet32_val.tar", "cannot be read"),
    ],
)
def test_official_imagenet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable, file: str, problem: str
) -> None:
    write_official_imagenet(tmp_path / "src", 32, 12, 6)
    change(tmp_path / "src")
    error = _fail(tmp_path, capsys, "imagenet32")
    assert problem in error
    assert file in error


def test_malicious_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Harm:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    write_official_imagenet(tmp_path / "src", 32, 12, 6)
    (tmp_path / "src" / TRAIN).write_bytes(_batch(data=TABLE, labels=Harm()))
    assert f"asks for {os.name}.mkdir" in _fail(tmp_path, capsys, "imagenet32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (HTML, "is not a zip file"),
        (b"", "is not a zip file"),
        ({"pixels": TABLE}, "has no array 'data'"),
        ({"data": np.array([{}, []], dtype=object)}, "data is object, not uint8"),
        ({"data": TABLE[0]}, "a table of shape (3072,) instead of images of 32×32"),
        ({"data": TABLE.astype(np.int64)}, "data is int64, not uint8"),
    ],
)
def test_npz(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | dict[str, np.ndarray], problem: str
) -> None:
    write_official_imagenet(tmp_path / "src", 32, 12, 6, form="npz")
    if isinstance(content, dict):
        np.savez(tmp_path / "src" / "val_data.npz", allow_pickle=True, **content)
    else:
        (tmp_path / "src" / "val_data.npz").write_bytes(content)
    error = _fail(tmp_path, capsys, "imagenet32")
    assert problem in error
    assert "val_data.npz" in error


def test_cut_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_official_imagenet(tmp_path / "src", 32, 12, 6, form="npz")
    _cut("train_data_batch_2.npz")(tmp_path / "src")
    assert "train_data_batch_2.npz" in _fail(tmp_path, capsys, "imagenet32")


def test_two_releases_below_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_official_imagenet(tmp_path / "src" / "a", 32, 12, 6)
    shutil.copytree(tmp_path / "src" / "a", tmp_path / "src" / "b")
    assert "have the same name: give the folder of one" in _fail(tmp_path, capsys, "imagenet32")


@pytest.mark.parametrize("form", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("content", ["html", "cut", "missing"])
def test_png_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, content: str) -> None:
    write_imagenet64_png(tmp_path / "src", 12, 4, form)
    name = f"valid_64x64{form}"
    {"html": _write(name, HTML), "cut": _cut(name), "missing": _remove(name)}[content](tmp_path / "src")
    error = _fail(tmp_path, capsys, "imagenet64_png")
    assert (
        "holds neither a folder valid_64x64" if content == "missing" else f"{name} cannot be read"
    ) in error


def test_png_of_another_size_or_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagenet64_png(tmp_path / "src", 12, 4, "")
    path = tmp_path / "src" / "train_64x64" / "0000003.png"
    path.write_bytes(encode(real_images(1, 32)[0]))
    error = _fail(tmp_path, capsys, "imagenet64_png")
    assert "0000003.png: 32×32 pixels instead of 64×64" in error
    path.write_bytes(HTML)
    shutil.rmtree(tmp_path / "out")
    assert "0000003.png: cannot be decoded" in _fail(tmp_path, capsys, "imagenet64_png")


def test_one_training_image_cannot_validate_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagenet64_png(tmp_path / "src", 1, 4, "")
    assert "gives no train image: check --src" in _fail(tmp_path, capsys, "imagenet64_png")
    shutil.rmtree(tmp_path / "src")
    write_official_imagenet(tmp_path / "src", 32, 1, 6, batches=1)
    assert "gives no train image: check --src" in _fail(tmp_path, capsys, "imagenet32")


def test_png_folder_without_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagenet64_png(tmp_path / "src", 12, 4, "")
    shutil.rmtree(tmp_path / "src" / "valid_64x64")
    (tmp_path / "src" / "valid_64x64").mkdir()
    assert "valid_64x64 holds no PNG file" in _fail(tmp_path, capsys, "imagenet64_png")


def test_cifar10(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar10(tmp_path / "src", archive=True)
    archive = tmp_path / "src" / "cifar-10-python.tar.gz"
    raw = archive.read_bytes()
    for broken in (HTML, raw[: len(raw) // 2], b""):
        archive.write_bytes(broken)
        assert "cifar-10-python.tar.gz cannot be read" in _fail(tmp_path, capsys, "cifar10")
    archive.unlink()
    assert "holds neither cifar-10-python.tar.gz nor" in _fail(tmp_path, capsys, "cifar10")
    write_cifar10(tmp_path / "src")
    (tmp_path / "src" / "cifar-10-batches-py" / "data_batch_4").unlink()
    assert "must hold data_batch_1 … data_batch_5 and test_batch" in _fail(tmp_path, capsys, "cifar10")


def test_archive_member_that_points_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links in an archive are not files; they are neither followed nor counted."""
    (tmp_path / "src").mkdir()
    with tarfile.open(tmp_path / "src" / "cifar-10-python.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link, io.BytesIO())
    assert "but has none" in _fail(tmp_path, capsys, "cifar10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--src", "x"], "demo does not use --src: leave it out"),
        (["demo", "--val-fraction", "0.5"], "demo does not use --val-fraction: leave it out"),
        (["imagenet64", "--src", "x", "--size", "32"], "imagenet64 does not use --size: leave it out"),
        (["cifar10", "--src", "x", "--seed", "0"], "cifar10 does not use --seed: leave it out"),
        (["folder"], "folder needs a source"),
        (["folder", "--src", "nowhere"], "nowhere is not a folder"),
        (["imagenet64", "--src", "nowhere"], "nowhere does not exist"),
        (["imagenet64_png", "--src", "nowhere"], "nowhere is not a folder"),
        (["folder", "--src", "x", "--val-fraction", "1"], "--val-fraction must lie between 0 and 1"),
        (["folder", "--src", "x", "--test-fraction", "0"], "--test-fraction must lie between 0 and 1"),
        (["demo", "--test-fraction", "0.5"], "demo does not use --test-fraction: leave it out"),
        (
            ["folder", "--src", "x", "--val-fraction", "0.5", "--test-fraction", "0.5"],
            "--val-fraction and --test-fraction leave nothing to train on: together 1",
        ),
        (["bsds500"], "bsds500 needs a source"),
        (["demo", "--size", "400"], "is too small"),
    ],
)
def test_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["build", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--size", "1"), ("--workers", "0"), ("--seed", "-1"), ("--size", "x")])
def test_impossible_options(tmp_path: Path, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build", "demo", "--out", str(tmp_path / "out"), *option])
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_demo_without_its_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "data_prep.sources.demo.find_spec", lambda name: None if name == "sklearn" else find(name)
    )
    assert main(["build", "demo", "--out", str(tmp_path / "out")]) == 1
    assert "the demo needs scikit-learn, which is not installed" in capsys.readouterr().err


def test_failed_request_does_not_block_a_corrected_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_official_imagenet(tmp_path / "src", 32, 12, 6)
    good = (tmp_path / "src" / TRAIN).read_bytes()
    _cut(TRAIN, 0.999)(tmp_path / "src")
    _fail(tmp_path, capsys, "imagenet32")
    (tmp_path / "src" / TRAIN).write_bytes(good)
    arguments = ["build", "imagenet32", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--workers", "1"]) == 0


def test_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Errors raised in worker processes arrive as one line too."""
    root = Path(__file__).parents[2]
    (tmp_path / "src").mkdir()
    write_imagenet64_png(tmp_path / "src", 12, 4, "")
    photograph("china", 32).save(tmp_path / "src" / "train_64x64" / "0000001.png")
    arguments = ["build", "imagenet64_png", "--src", "src", "--out", "out", "--workers", "2"]
    process = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments],
        env=os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith(
        "error: src/train_64x64, PNG at 0000001.png: 32×32 pixels"
    )
