"""BSDS500: the same shards from the archive and from its folders, each photograph in its official split."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.cli import main
from data_prep.sources.bsds500 import OFFICIAL, Bsds500
from dualscore.data.shards import Manifest
from fakes import photograph, photograph_paths
from prep_helpers import build, names_of, read_split
from workspace import ROOT

MEMBERS = {"train": ("astronaut", "coffee", "rocket"), "val": ("chelsea",), "test": ("flower", "china")}
IMAGES = "BSR/BSDS500/data/images"
SHARED = ROOT.parent / "shared" / "photographs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the archive unpacks to, in small."""
    root = tmp_path / "source"
    for split, names in MEMBERS.items():
        (root / IMAGES / split).mkdir(parents=True)
        (root / IMAGES / split / "Thumbs.db").write_bytes(b"thumbnails")
        for name in names:
            photograph(name, 80).save(root / IMAGES / split / f"{name}.jpg")
    (root / "BSR/BSDS500/data/groundTruth/train").mkdir(parents=True)
    (root / "BSR/BSDS500/data/groundTruth/train/astronaut.mat").write_bytes(b"segments")
    photograph("motorcycle_left", 80).save(root / "BSR/figure.jpg")
    return root


def pack(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "BSR", "BSR")
    return archive


def fail(capsys: pytest.CaptureFixture[str], tmp_path: Path, src: Path) -> str:
    out = tmp_path / "out"
    assert main(["build", "bsds500", "--src", str(src), "--out", str(out), "--workers", "1"]) == 1
    assert not (out / "manifest.json").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_archive_and_folders_give_the_same_shards(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "at" / "BSR_bsds500.tgz")
    places = {
        "archive": archive, "holds the archive": archive.parent, "unpacked": folder,
        "BSR": folder / "BSR", "BSDS500": folder / "BSR/BSDS500", "splits": folder / IMAGES,
    }  # fmt: skip
    made = {}
    for kind, src in places.items():
        build("bsds500", tmp_path / kind, src, size=16, workers=2 if kind == "archive" else 1)
        made[kind] = {path.name: path.read_bytes() for path in (tmp_path / kind).iterdir() if path.is_file()}
    assert all(files == made["archive"] for files in made.values())
    manifest = Manifest.load(tmp_path / "archive")
    assert names_of(manifest) == {
        split: tuple(f"{split}/{name}.jpg" for name in sorted(names)) for split, names in MEMBERS.items()
    }
    warning = "not the whole set: train 3 of 200; val 1 of 100; test 2 of 200 photographs"
    assert manifest.source["warnings"] == [warning]
    assert manifest.source["crops"]["stride"] == {"train": 8, "val": 16, "test": 16}
    assert manifest.release.startswith("BSDS500 (Martin et al. 2001")


def test_crops_are_those_of_the_photographs(folder: Path, tmp_path: Path) -> None:
    build("bsds500", tmp_path / "out", folder, size=16)
    pixels = np.asarray(Image.open(folder / IMAGES / "test" / "china.jpg"))
    test = read_split(tmp_path / "out", "test")
    assert np.array_equal(test[0], pixels[:16, :16].transpose(2, 0, 1))
    assert np.array_equal(test[1], pixels[:16, 16:32].transpose(2, 0, 1))
    assert len(test) == 2 * (25 + 4 + 1)
    assert len(read_split(tmp_path / "out", "train")) == 3 * (81 + 16 + 1)


def test_a_photograph_in_two_splits_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / IMAGES / "train/coffee.jpg", folder / IMAGES / "test/1.jpg")
    for src in (folder, pack(folder, tmp_path / "BSR_bsds500.tgz")):
        assert "test/1.jpg is in test and in train (there train/coffee.jpg)" in fail(capsys, tmp_path, src)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("how", ["missing", "empty", "unusable"])
def test_a_split_without_photographs_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, how: str
) -> None:
    place = folder / IMAGES / split
    for path in place.glob("*.jpg"):
        path.write_bytes(b"<html></html>") if how == "unusable" else path.unlink()
    if how == "missing":
        shutil.rmtree(place)
    for src in (folder, pack(folder, tmp_path / "BSR_bsds500.tgz")):
        assert f"holds no usable photograph in {split}: get all of BSR_bsds500.tgz" in fail(
            capsys, tmp_path, src
        )


def test_what_is_neither_archive_nor_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for src in (tmp_path / "empty", tmp_path / "nowhere"):
        assert "is neither BSR_bsds500.tgz nor a folder that holds it" in fail(capsys, tmp_path, src)
    damaged = tmp_path / "BSR_bsds500.tgz"
    damaged.write_bytes(b"<html>not found</html>")
    assert "BSR_bsds500.tgz cannot be read" in fail(capsys, tmp_path, damaged)


def test_a_cut_archive(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pack(folder, tmp_path / "BSR_bsds500.tgz")
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert "BSR_bsds500.tgz cannot be read" in fail(capsys, tmp_path, archive)


def add(archive: Path, entries: dict[str, bytes], link: Path | None = None) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(f"{IMAGES}/{name}")
            entry.size = len(content)
            if link is not None:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, str(link), 0
            tar.addfile(entry, io.BytesIO(content))


def test_links_in_an_archive_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "BSR_bsds500.tgz"
    add(archive, {"train/a.jpg": b"", "val/b.jpg": b"", "test/c.jpg": b""}, photograph_paths()["china"])
    assert "holds no usable photograph in train" in fail(capsys, tmp_path, archive)


def test_a_bomb_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "BSR_bsds500.tgz"
    add(archive, {"train/a.jpg": bytes(2**25)})
    assert "is refused" in fail(capsys, tmp_path, archive)


def test_more_than_the_set_could_be_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.bsds500.MOST_BYTES", 1000)
    archive = pack(folder, tmp_path / "BSR_bsds500.tgz")
    assert "holds more than photographs of BSDS500" in fail(capsys, tmp_path, archive)


def test_a_dry_run_shows_all_splits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["build", "bsds500", "--src", str(folder), "--out", str(out), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "val 30 images of 3×16×16, of 1 photograph test" in shown
    assert "test 60 images of 3×16×16, of 2 photographs" in shown
    assert "photographs.npz" in shown
    assert not out.exists()


def test_the_set_itself() -> None:
    """Its counts, and that no photograph is in two splits."""
    if not SHARED.exists():
        pytest.skip("the photographs of BSDS500 are not beside the repository: shared/photographs")
    from data_prep.plan import Request

    plan = Bsds500().plan(Request("bsds500", SHARED, size=64, seed=0))
    assert plan.photographs is not None
    counts = {split: len(known.sha256) for split, known in plan.photographs.items()}
    assert counts == OFFICIAL | {"test": 100}  # the first hundred of them
    across, down = 481 // 64, 321 // 64
    each = across * down + (240 // 64) * (160 // 64) + (120 // 64) * (80 // 64)
    assert plan.counts["test"] == 100 * each
