"""Manifests, shards, archives and pictures from strangers: bounded, and nothing in them runs."""

import io
import json
import pickle
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main as prepare
from data_prep.verify import verify
from dualscore.data.reader import EvenlySpacedBatches
from dualscore.data.shards import Manifest, Shard, load_spectrum
from dualscore.errors import DataError
from evil import Evil
from fakes import write_cifar10
from workspace import copy_shards

# --- manifests and shards


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(image_shape=[3, 10**6, 10**6]), "more than images here may have"),
        (lambda m: m.update(release="\x1b[2Jcleared"), "release has an impossible value"),
        (lambda m: m.update(image_shape=[10**6, 1, 1]), "more than images here may have"),
        (lambda m: m["splits"]["val"]["shards"][0].update(images=10**15), "more than [0-9]+ bytes hold"),
        (lambda m: m["statistics"].update(spectrum_file="-rf.npy"), "spectrum_file has an impossible value"),
        (lambda m: m["splits"]["val"]["shards"][0].update(file="/etc/passwd"), "has an impossible value"),
    ],
)
def test_a_manifest_cannot_ask_for_the_impossible(
    demo_shards: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    document = json.loads((demo_shards / "manifest.json").read_text())
    change(document)
    with pytest.raises(DataError, match=problem):
        Manifest.parse(json.dumps(document).encode(), "manifest.json")


def test_a_manifest_nested_without_end_is_an_error() -> None:
    with pytest.raises(DataError, match="not valid JSON"):
        Manifest.parse(b"[" * 10**6, "manifest.json")


@pytest.mark.parametrize("kind", ["objects", "absurd"])
def test_a_spectrum_is_numbers_of_its_own_size(demo_shards: Path, tmp_path: Path, kind: str) -> None:
    import hashlib

    if kind == "objects":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
        content = buffer.getvalue()
    else:
        header = str({"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}).encode()
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "spectrum.npy").write_bytes(content)
    document = json.loads((demo_shards / "manifest.json").read_text())
    document["statistics"]["spectrum_sha256"] = hashlib.sha256(content).hexdigest()
    manifest = Manifest.parse(json.dumps(document).encode(), "manifest.json")
    with pytest.raises(DataError, match=r"spectrum.npy is not a NumPy array"):
        load_spectrum(tmp_path, manifest)
    assert not Path("oops").exists()


def _sparse(size: int) -> bytes:
    """A tar whose one entry claims a size and holds nothing."""
    entry = tarfile.TarInfo("000000000.u8")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size  # the real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(10240)


def _link(kind: bytes) -> bytes:
    entry = tarfile.TarInfo("000000000.u8")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry.tobuf(tarfile.USTAR_FORMAT) + bytes(10240)


@pytest.mark.parametrize(
    "content",
    [_sparse(2**32), _sparse(768), _link(tarfile.SYMTYPE), _link(tarfile.LNKTYPE), _link(tarfile.CHRTYPE)],
    ids=["a bomb", "a sparse image", "a link", "a hard link", "a device"],
)
def test_a_shard_holds_plain_files_only(demo_shards: Path, tmp_path: Path, content: bytes) -> None:
    manifest = Manifest.load(demo_shards)
    folder = copy_shards(demo_shards, tmp_path / "copy")
    name = manifest.splits["val"].shards[0].file
    (folder / name).write_bytes(content)
    shard = Shard(name, 1, len(content), "0" * 64)
    with pytest.raises(DataError, match=name):
        list(EvenlySpacedBatches(folder, (3, 16, 16), (shard,), 1, 1))
    begun = time.monotonic()
    problems = verify(folder, workers=1)
    assert any(name in problem for problem in problems)
    assert time.monotonic() - begun < 60


def test_names_with_folders_in_a_shard_reach_nothing(tmp_path: Path) -> None:
    """Only an image's number is taken from its name, and nothing is ever written."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../../000000000.u8", "/000000001.u8"):
            entry = tarfile.TarInfo(name)
            entry.size = 25
            tar.addfile(entry, io.BytesIO(bytes(25)))
    shard = Shard(path.name, 2, path.stat().st_size, "0" * 64)
    (batch,) = EvenlySpacedBatches(folder, (1, 5, 5), (shard,), 2, 2)
    assert batch.position.tolist() == [0, 1]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


# --- what shards are made of


def _failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert prepare(["build", *arguments, "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_batch_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "Imagenet64_train.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_data_batch_1", "val_data"):
            table = np.zeros((2000, 12288), np.uint8)
            archive.writestr(name, pickle.dumps({"data": table}, protocol=2))
    (tmp_path / "Imagenet64_val.zip").write_bytes(source.read_bytes())
    error = _failed(capsys, "imagenet64", "--src", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "train_data_batch_1 is refused: " in error
    assert "bytes that unpack to 24,576," in error


@pytest.mark.parametrize("kind", ["npz", "tar.gz", "sparse"])
def test_a_batch_that_unpacks_to_far_more_is_refused_in_any_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "npz":
        for name in ("train_data_batch_1", "val_data"):
            np.savez_compressed(tmp_path / f"{name}.npz", data=np.zeros((2000, 12288), np.uint8))
        arguments = ["imagenet64", "--src", str(tmp_path)]
    else:
        arguments = ["cifar10", "--src", str(tmp_path)]
        entry = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        entry.size = 5 * 10**7
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            if kind == "sparse":
                entry.type = tarfile.GNUTYPE_SPARSE
                entry.size = 0
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
            for name in ("data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
                tar.addfile(tarfile.TarInfo(f"cifar-10-batches-py/{name}"), io.BytesIO())
    error = _failed(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert ("has data_batch_2" if kind == "sparse" else "is refused: ") in error


def test_a_table_that_claims_an_absurd_shape_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar10(tmp_path / "src")
    header = b"\x80\x02}U\x04dataK"  # shape and rows are looked for before anything is built
    absurd = header + b"\x01J" + struct.pack("<i", 2**31 - 1) + b"M\x00\x0c\x86."
    (tmp_path / "src/cifar-10-batches-py/data_batch_1").write_bytes(absurd)
    error = _failed(capsys, "cifar10", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out"))
    assert "claims a table of shape (2147483647, 3072): refused" in error


def _png(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    body = zlib.compress(bytes((3 * side + 1) * min(side, 100)))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["", ".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("kind", ["pixels", "bytes"])
def test_an_image_that_claims_more_is_refused_before_it_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, kind: str
) -> None:
    content = _png(12_000) if kind == "pixels" else bytes(5 * 10**7)
    for split in ("train_64x64", "valid_64x64"):
        names = [f"{split}/1.png", f"{split}/2.png"]  # one of two validates
        if form == ".zip":
            with zipfile.ZipFile(tmp_path / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.writestr(name, content)
        elif form:
            with tarfile.open(tmp_path / f"{split}{form}", "w:gz" if "gz" in form else "w") as tar:
                for name in names:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        else:
            (tmp_path / split).mkdir()
            for name in names:
                (tmp_path / name).write_bytes(content)
    error = _failed(capsys, "imagenet64_png", "--src", str(tmp_path), "--out", str(tmp_path / "out"))
    assert ("12000×12000 pixels instead of 64×64" if kind == "pixels" else "cannot be decoded") in error


def test_a_photograph_of_absurd_size_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/bomb.png").write_bytes(_png(60_000))
    error = _failed(
        capsys, "folder", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out"), "--size", "16"
    )
    assert "has too many pixels" in error
