"""BSDS300 as density models take it: which photographs, how many patches of each, and where from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.sources import bsds300
from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from fakes import photograph
from prep_helpers import build, contents, names_of, read_split

COUNTS = {"train": 90, "val": 20, "test": 30}
NAMES = {"train": ("astronaut", "coffee", "rocket", "motorcycle_left"), "test": ("chelsea", "flower")}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bsds300, "PATCHES", COUNTS)
    monkeypatch.setattr(bsds300, "CHOOSING", 1)


def write(root: Path, below: str, tested: str) -> Path:
    for split, names in NAMES.items():
        place = root / below / (tested if split == "test" else split)
        place.mkdir(parents=True)
        for name in names:
            photograph(name, 60).save(place / f"{name}.png")
    return root


def pixels(root: Path, name: str) -> np.ndarray:
    (path,) = root.rglob(f"{Path(name).stem}.png")
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    ("below", "tested"), [("BSR/BSDS500/data/images", "val"), ("images", "test"), (".", "test")]
)
def test_patches_are_of_their_photographs_and_as_many_of_each(
    tmp_path: Path, below: str, tested: str
) -> None:
    """From BSDS500, whose validation photographs are the test ones of BSDS300, and from BSDS300 itself."""
    root = write(tmp_path / "source", below, tested)
    if tested == "val":  # BSDS500's own test photographs belong to no split
        (root / below / "test").mkdir()
        photograph("china", 60).save(root / below / "test/china.png")
    manifest = build("bsds300", tmp_path / "out", root)
    names = names_of(manifest)
    assert {split: len(found) for split, found in names.items()} == {"train": 3, "val": 1, "test": 2}
    assert sorted(Path(name).stem for name in names["train"] + names["val"]) == sorted(NAMES["train"])
    assert [Path(name).stem for name in names["test"]] == sorted(NAMES["test"])
    assert manifest.photographs is not None
    numbers = manifest.photographs.load(tmp_path / "out", manifest.images)
    for split, count in COUNTS.items():
        patches, which = read_split(tmp_path / "out", split), numbers[split]
        assert patches.shape == (count, 3, 8, 8)
        assert np.bincount(which).tolist() == [count // len(names[split])] * len(names[split])
        for name, number in zip(names[split], range(len(names[split])), strict=True):
            image = pixels(root, name)
            every = np.lib.stride_tricks.sliding_window_view(image, (8, 8), axis=(0, 1)).reshape(-1, 192)
            known = {row.tobytes() for row in every}
            assert all(patch.reshape(-1).tobytes() in known for patch in patches[which == number])
    assert any("not the whole set: train 4 of 200; test 2 of 100" in w for w in manifest.source["warnings"])


def test_the_seed_chooses_photographs_and_places_and_the_processes_nothing(tmp_path: Path) -> None:
    root = write(tmp_path / "source", "images", "test")
    for name, seed, workers in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        build("bsds300", tmp_path / name, root, seed=seed, workers=workers)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first["test-000000.tar"] != other["test-000000.tar"]
    chosen = {name: names_of(Manifest.load(tmp_path / name))["val"] for name in "ac"}
    assert chosen["a"] != chosen["c"]


def test_where_photographs_are_missing_a_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is neither BSR_bsds500\.tgz nor a folder that holds it"):
        build("bsds300", tmp_path / "out", tmp_path)
    root = write(tmp_path / "source", "images", "test")
    for path in (root / "images/test").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no usable photograph to train, choose or test by"):
        build("bsds300", tmp_path / "out", root)
