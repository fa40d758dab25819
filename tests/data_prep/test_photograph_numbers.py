"""Which photograph each image is of: right at every position, and read only if it is whole."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.verify import verify
from dualscore.data.datamodule import Batching
from dualscore.data.photograph_numbers import Photographs, SplitPhotographs, leak
from dualscore.data.reader import ShardDataModule
from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from evil import Evil
from fakes import photograph, write_official_imagenet
from prep_helpers import build, contents, names_of, read_split
from workspace import ROOT

OLD = ROOT / "tests" / "data" / "manifest_two_splits.json"
"""The demo's at 64×64 as it was written before there were test splits."""


def module(folder: Path, manifest: Manifest | None = None, training: range | None = None) -> ShardDataModule:
    return ShardDataModule(
        folder,
        manifest or Manifest.load(folder),
        Batching(8, 8, 0, 1, 0, 8, 8),
        shuffle_buffer=64,
        training=training,
    )


def photograph_name(data: ShardDataModule, split: str, number: int) -> str:
    known = data.manifest.photographs
    assert known is not None
    return known.splits[split].names[number]


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of one red value each, which their name tells, cut in groups of a few."""
    folder = tmp_path_factory.mktemp("painted")
    (folder / "src").mkdir()
    draw = np.random.default_rng(0)
    for value in range(10, 250, 12):
        pixels = draw.integers(0, 256, (24 + value % 5 * 4, 32, 3), np.uint8)
        pixels[..., 0] = value
        Image.fromarray(pixels).save(folder / "src" / f"{value}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.sources.folder.GROUP_CROPS", 150)
        build("folder", folder / "out", folder / "src", 1, 8, 0.25, 0.2)
    return folder / "out"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "out"
    build("demo", folder, size=64)
    return folder


@pytest.fixture
def out(painted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(painted, tmp_path / "out"))


def edit(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = out / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def replace_file(out: Path, content: bytes) -> None:
    """Another file of photographs, with a checksum that fits."""
    (out / "photographs.npz").write_bytes(content)
    edit(out, lambda m: m["photographs"].update(sha256=hashlib.sha256(content).hexdigest()))


# --- right at every position


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_crop_is_of_the_photograph_that_its_pixels_show(painted: Path, split: str) -> None:
    data = module(painted)
    shown = read_split(painted, split)[:, 0, 0, 0].tolist()
    numbers = data.photographs(split, torch.arange(len(shown)))
    assert numbers is not None
    assert numbers.dtype == torch.int64
    names = [photograph_name(data, split, number) for number in numbers.tolist()]
    assert names == [f"{value}.png" for value in shown]
    some = torch.tensor([5, 0, 5, len(shown) - 1])  # in any order, more than once
    found = data.photographs(split, some)
    assert found is not None
    assert found.tolist() == numbers[some].tolist()


def test_training_crops_are_shuffled_within_several_groups(painted: Path) -> None:
    """Without which the test above would prove little."""
    numbers = Manifest.load(painted).photographs
    assert numbers is not None
    train = numbers.load(painted, Manifest.load(painted).images)["train"]
    steps = np.diff(train)
    assert (steps < 0).mean() > 0.2
    assert len(np.unique(train)) == 11
    group = train[:100]
    assert len(np.unique(group)) < 8


def test_batches_of_training_know_their_photographs(painted: Path) -> None:
    data = module(painted)
    for loader in (data.epoch_loader(0, 0), data.epoch_loader(1, 3)):
        batch = next(iter(loader))
        numbers = data.photographs("train", batch.position)
        assert numbers is not None
        names = [photograph_name(data, "train", number) for number in numbers.tolist()]
        assert names == [f"{value}.png" for value in batch.image[:, 0, 0, 0].tolist()]
    part = next(iter(module(painted, training=range(20, 60)).evenly_spaced("train", 40, 40)))
    assert part.position.tolist() == list(range(20, 60))
    found = data.photographs("train", part.position)
    assert found is not None
    assert [photograph_name(data, "train", n) for n in found.tolist()] == [
        f"{value}.png" for value in part.image[:, 0, 0, 0].tolist()
    ]


def test_the_demos_crops_lie_in_their_photographs(sound: Path) -> None:
    """By plain slices of the photographs at full scale, which are most of the crops."""
    data = module(sound)
    manifest = Manifest.load(sound)
    assert names_of(manifest) == {
        "train": ("astronaut", "coffee", "rocket", "motorcycle_left", "china"),
        "val": ("chelsea", "flower"),
        "test": ("grace_hopper", "ihc"),
    }
    for split, names in names_of(manifest).items():
        origin: dict[bytes, str] = {}
        for name in names:
            pixels = np.asarray(photograph(name))
            for y in range(0, pixels.shape[0] - 63, 32):
                for x in range(0, pixels.shape[1] - 63, 32):
                    origin[pixels[y : y + 64, x : x + 64].transpose(2, 0, 1).tobytes()] = name
        images = read_split(sound, split)
        numbers = data.photographs(split, torch.arange(len(images)))
        assert numbers is not None
        pairs = [
            (origin[image.tobytes()], photograph_name(data, split, number))
            for image, number in zip(images, numbers.tolist(), strict=True)
            if image.tobytes() in origin
        ]
        assert len(pairs) > len(images) / 2
        assert all(shown == told for shown, told in pairs)


def test_test_crops_are_measured_in_order(sound: Path) -> None:
    data = module(sound)
    assert data.reported == "test"
    assert data.counts["test"] == len(read_split(sound, "test"))
    batches = list(data.evenly_spaced("test", 20, 8))
    positions = torch.cat([batch.position for batch in batches])
    assert len(positions) == 20
    assert positions.tolist() == sorted(positions.tolist())
    images = np.concatenate([batch.image.numpy() for batch in batches])
    assert np.array_equal(images, read_split(sound, "test")[positions.numpy()])
    alone = data.photographs("test", positions)
    assert alone is not None
    assert set(alone.tolist()) == {0, 1}


def test_checksums_are_those_of_the_files(painted: Path) -> None:
    known = Manifest.load(painted).photographs
    assert known is not None
    for split in known.splits.values():
        for name, checksum in zip(split.names, split.sha256, strict=True):
            raw = (painted.parent / "src" / name).read_bytes()
            assert hashlib.sha256(raw).hexdigest() == checksum


def test_of_many_photographs_only_checksums_are_kept(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.folder.NAMES_KEPT", 19)
    build("folder", tmp_path / "out", painted.parent / "src", 1, 8, 0.25, 0.2)
    data = module(tmp_path / "out")
    known, named = data.manifest.photographs, Manifest.load(painted).photographs
    assert known is not None
    assert named is not None
    for split, of in named.splits.items():
        assert known.splits[split] == SplitPhotographs(of.sha256)
    assert verify(tmp_path / "out", workers=1) == []


def test_images_that_are_photographs_are_their_own(tmp_path: Path) -> None:
    write_official_imagenet(tmp_path / "src", 32, 40, 12)
    build("imagenet32", tmp_path / "out", src=tmp_path / "src")
    document = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert document["photographs"] == {"each_image": True}
    assert not (tmp_path / "out" / "photographs.npz").exists()
    data = module(tmp_path / "out")
    positions = torch.tensor([7, 0, 11, 7])
    found = data.photographs("test", positions)
    assert found is not None
    assert found.tolist() == [7, 0, 11, 7]


@pytest.mark.parametrize("position", [-1, 176])
def test_a_position_outside_is_refused(sound: Path, position: int) -> None:
    with pytest.raises(DataError, match=f"position {position} is not one of the 176 test images"):
        module(sound).photographs("test", torch.tensor([3, position]))


# --- what was written before


def test_an_old_manifest_is_read_and_saved_as_it_was(tmp_path: Path) -> None:
    manifest = Manifest.parse(OLD.read_bytes(), OLD)
    assert manifest.photographs is None
    assert list(manifest.splits) == ["train", "val"]
    manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == OLD.read_bytes()


@pytest.mark.parametrize(
    ("training", "identity"),
    [
        (None, "a0a5b5e0e4b0884937f0198e4b8b6a692fe0a4a73f62f972493c9ea6b119d1fd"),
        (range(5, 300), "4021ce664bcbceddb7ef366ae71dd32402d62990a3396be31f3b0ed189e39972"),
    ],
)
def test_rows_measured_on_an_old_data_set_stay_valid(
    tmp_path: Path, training: range | None, identity: str
) -> None:
    """The identities are those that the code before test splits gave."""
    data = module(tmp_path, Manifest.parse(OLD.read_bytes(), OLD), training)
    assert data.identity == identity
    assert data.reported == "val"
    assert "test" not in data.counts
    assert data.photographs("val", torch.arange(3)) is None


def test_the_demos_training_and_validation_crops_are_what_they_were(sound: Path) -> None:
    """So that weights trained on them are still what their experiment gives: all but the test split."""
    before, now = Manifest.parse(OLD.read_bytes(), OLD), Manifest.load(sound)
    assert {split: now.splits[split] for split in ("train", "val")} == before.splits
    assert now.statistics.pixel_mean == before.statistics.pixel_mean


# --- a photograph in two splits


def test_a_manifest_whose_splits_share_a_photograph_is_refused(out: Path) -> None:
    document = json.loads((out / "manifest.json").read_text())
    checksums = {split: of["sha256"] for split, of in document["photographs"]["splits"].items()}
    for later, earlier, name, there in (
        ("test", "train", "58.png", "226.png"),
        ("test", "val", "58.png", "166.png"),
        ("val", "train", "94.png", "226.png"),
    ):
        copied = {**checksums, later: [*checksums[later][:-1], checksums[earlier][2]]}
        for split, values in copied.items():
            document["photographs"]["splits"][split]["sha256"] = values
        (out / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(DataError) as caught:
            Manifest.load(out)
        assert str(caught.value) == (
            f"{out / 'manifest.json'}: photographs.splits are wrong: {name} is in {later} and in {earlier} "
            f"(there {there}), but splits share no photograph; prepare the data set again"
        )


def test_a_shared_photograph_without_names_is_called_by_its_checksum() -> None:
    splits = {"train": SplitPhotographs(("a", "b")), "val": SplitPhotographs(("c", "b"))}
    assert leak(splits) == "b is in val and in train, but splits share no photograph"
    assert leak({"train": SplitPhotographs(("a", "b")), "val": SplitPhotographs(("c", "d"))}) is None


def test_a_build_whose_splits_share_a_photograph_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data_prep.sources.demo.TEST", {"another": ("skimage", "data/chelsea.png")})
    from data_prep.plan import Request, check_splits
    from data_prep.sources.demo import TRAIN, Demo

    plan = Demo(tuple(TRAIN)[:4])
    with pytest.raises(DataError, match=r"^demo: another is in test and in val \(there chelsea\)"):
        check_splits(plan.plan(Request("demo", None, size=64, seed=0)), Request("demo", None))


# --- damage


def packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def numbers(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "photographs.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda a: a | {"test": a["test"][:-1]}, r"holds int32 \(80,\) for test instead of int32 \(81,\)"),
        (lambda a: a | {"val": a["val"].astype(np.int16)}, r"holds int16 \(102,\) for val instead of int32"),
        (lambda a: a | {"val": a["val"][:, None]}, r"holds int32 \(102, 1\) for val"),
        (lambda a: {"train": a["train"], "val": a["val"]}, "is not an archive of NumPy arrays.*test.npy"),
        (lambda a: a | {"val": np.array([Evil()] * 102)}, "is not an archive of NumPy arrays.*pickle"),
        (lambda a: a | {"val": np.zeros(10**5, np.int32)}, "holds more for val than numbers of 102 images"),
        (lambda a: a | {"val": a["val"] + 1}, "names photographs of val that are not among its 5"),
        (lambda a: a | {"val": a["val"] - 1}, "names photographs of val that are not among its 5"),
    ],
    ids=["length", "dtype", "shape", "split", "objects", "bomb", "too high", "negative"],
)
def test_a_wrong_file_with_a_fitting_checksum(
    out: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], problem: str
) -> None:
    replace_file(out, packed(**change(numbers(out))))
    with pytest.raises(DataError, match=problem) as caught:
        Manifest.load(out)
    assert str(caught.value).startswith(str(out / "photographs.npz"))
    assert "\n" not in str(caught.value)
    assert verify(out, workers=1) == [str(caught.value)]
    assert not Path("oops").exists()


def test_a_file_packed_in_another_way_is_refused(out: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        for name in zipfile.ZipFile(out / "photographs.npz").namelist():
            archive.writestr(name, zipfile.ZipFile(out / "photographs.npz").read(name))
    replace_file(out, buffer.getvalue())
    with pytest.raises(DataError, match=r"train\.npy is packed in another way than NumPy does"):
        Manifest.load(out)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x05\x06" + bytes(18)])
def test_not_an_archive(out: Path, content: bytes) -> None:
    replace_file(out, content)
    with pytest.raises(DataError, match=r"photographs\.npz is not an archive of NumPy arrays"):
        Manifest.load(out)


def test_a_missing_or_changed_file(out: Path) -> None:
    path = out / "photographs.npz"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"photographs\.npz has another checksum than manifest\.json says"):
        Manifest.load(out)
    assert len(verify(out, workers=1)) == 1
    path.unlink()
    with pytest.raises(DataError, match=r"photographs\.npz cannot be read: No such file"):
        Manifest.load(out)


def test_a_photograph_without_an_image_is_found(out: Path) -> None:
    arrays = numbers(out)
    arrays["test"][arrays["test"] == 1] = 0
    replace_file(out, packed(**arrays))
    path = out / "photographs.npz"
    assert verify(out, workers=1) == [f"{path} has no image of 214.png, a photograph of test"]


def put(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document["photographs"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(photographs=[]), "photographs must be of type dict, not list"),
        (lambda m: m.update(photographs=None), "photographs must be of type dict, not NoneType"),
        (lambda m: m.update(photographs={"each_image": False}), r"photographs\.each_image must be true"),
        (put("each_image", value=True), r"photographs\.each_image must be true and alone"),
        (lambda m: m["photographs"].pop("file"), r"photographs\.file is missing"),
        (put("file", value="../x.npz"), r"photographs\.file has an impossible value"),
        (put("file", value="x.npy"), r"photographs\.file has an impossible value"),
        (put("sha256", value="ab"), r"photographs\.sha256 has an impossible value"),
        (lambda m: m["photographs"]["splits"].pop("test"), r"photographs\.splits\.test is missing"),
        (lambda m: m["splits"].pop("test"), r"photographs\.splits\.test is of no split"),
        (put("splits", "val", "sha256", 0, value=3), r"val\.sha256\.0 must be of type str"),
        (put("splits", "val", "sha256", 1, value="A" * 64), r"val\.sha256\.1 has an impossible value"),
        (put("splits", "val", "sha256", value=[]), r"val\.sha256 holds 0 photographs of 102 images"),
        (put("splits", "val", "sha256", value=["0" * 64] * 103), r"holds 103 photographs of 102 images"),
        (put("splits", "val", "names", value=["a"]), r"val\.names holds 1 names of 5 photographs"),
        (put("splits", "val", "names", 1, value="\x1b[2J"), r"val\.names\.1 has an impossible value"),
    ],
)
def test_a_wrong_key(out: Path, change: Callable[[dict[str, Any]], object], problem: str) -> None:
    edit(out, change)
    with pytest.raises(DataError, match=problem) as caught:
        Manifest.load(out)
    assert str(caught.value).startswith(f"{out / 'manifest.json'}: photographs")
    assert "\n" not in str(caught.value)


def test_saving_what_was_loaded_changes_nothing(out: Path) -> None:
    before = contents(out)
    Manifest.load(out).save(out)
    assert contents(out) == before


def test_without_a_file_nothing_is_read() -> None:
    assert Photographs().each_image
    assert Photographs().load("nowhere", {"train": 3}) == {}
