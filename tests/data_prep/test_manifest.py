"""A manifest is read only if it is whole; otherwise the file and the key at fault are named."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dualscore import errors
from dualscore.data.shards import Manifest, load_spectrum
from dualscore.errors import DataError
from fakes import write_official_imagenet
from prep_helpers import build, contents


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_official_imagenet(folder / "src", 32, 17, 8)
    build("imagenet32", folder / "out", src=folder / "src")
    return folder / "out"


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def test_saving_what_was_loaded_changes_nothing(out: Path) -> None:
    before = contents(out)
    Manifest.load(out).save(out)
    assert contents(out) == before


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Manifest.load(tmp_path / "no")
    assert str(caught.value) == (
        f"{tmp_path}/no/manifest.json is missing: no data set was prepared there; "
        f"make it with: make data DATASET=… SRC=… OUT={tmp_path}/no"
    )
    with pytest.raises(DataError, match=r"make it with: make demo$"):
        Manifest.load(str(tmp_path / "no"), hint="make demo")


def _set(*keys: str | int, value: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        place = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def _drop(*keys: str) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        place = document
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            _set("format", value="dualscore-shards-2"),
            "format is 'dualscore-shards-2', but this version reads",
        ),
        (_drop("format"), "format is missing"),
        (_drop("release"), "release is missing"),
        (_drop("splits", "val"), r"splits\.val is missing"),
        (_drop("statistics", "pixel_mean"), r"statistics\.pixel_mean is missing"),
        (_set("dataset", value=3), "dataset must be of type str, not int"),
        (_set("source", value=[]), "source must be of type dict, not list"),
        (_set("image_shape", value=[3, 32]), r"image_shape must be \[channels, height, width\]"),
        (_set("image_shape", 1, value=0), r"image_shape\.1 must be at least 1, not 0"),
        (_set("image_shape", 1, value=True), r"image_shape\.1 must be of type int, not bool"),
        (_set("splits", "train", "images", value=17), r"splits\.train\.images is 17, but its shards hold 16"),
        (_set("splits", "train", "shards", value={}), r"splits\.train\.shards must be of type list"),
        (
            _set("splits", "train", "shards", 2, "file", value="../x.tar"),
            r"shards\.2\.file has an impossible",
        ),
        (_set("splits", "train", "shards", 2, "file", value="train-000001.tar"), r"shards\.2\.file has an"),
        (_set("splits", "train", "shards", 2, "bytes", value="9"), r"shards\.2\.bytes must be of type int"),
        (
            _set("splits", "val", "shards", 0, "sha256", value="ab"),
            r"val\.shards\.0\.sha256 has an impossible",
        ),
        (_set("statistics", "images", value=3), r"statistics\.images differs from splits\.train\.images"),
        (_set("statistics", "pixel_mean", value=[0.5]), r"pixel_mean must hold 3 numbers"),
        (_set("statistics", "pixel_mean", 1, value="x"), r"pixel_mean\.1 must be of type float"),
        (
            _set("statistics", "pixel_variance", 0, value=float("nan")),
            "variance.0 has an impossible value: nan",
        ),
        (_set("statistics", "spectrum_file", value="/etc/x.npy"), "spectrum_file has an impossible value"),
    ],
)
def test_wrong_key(out: Path, change: Callable[[dict], None], problem: str) -> None:
    path = out / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=problem) as caught:
        Manifest.load(out)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff"])
def test_not_a_manifest(out: Path, text: str) -> None:
    (out / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"manifest\.json.*(not valid JSON|must be of type dict)"):
        Manifest.load(out)


def test_missing_and_cut_shards(out: Path) -> None:
    path = out / "train-000001.tar"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match=f"train-000001.tar has {len(raw) - 1} bytes instead of {len(raw)}"):
        Manifest.load(out)
    path.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar cannot be read: No such file"):
        Manifest.load(out)


def test_spectrum(out: Path) -> None:
    manifest = Manifest.load(out)
    other = Manifest(**{**vars(manifest), "image_shape": (3, 16, 16)})
    with pytest.raises(DataError, match=r"spectrum.npy holds float64 \(3, 3, 32, 32\) instead of"):
        load_spectrum(out, other)
    np.save(out / "spectrum.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"spectrum.npy has another checksum"):
        Manifest.load(out)
    (out / "spectrum.npy").unlink()
    with pytest.raises(DataError, match=r"spectrum.npy cannot be read"):
        Manifest.load(out)


def test_errors_travel_between_processes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert errors.DataError in kinds  # the list is not empty
    for kind in kinds:
        copy = pickle.loads(pickle.dumps(kind("file: wrong")))  # noqa: S301
        assert type(copy) is kind
        assert str(copy) == "file: wrong"
        assert isinstance(copy, errors.DualscoreError)
