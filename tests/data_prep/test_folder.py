"""Folders of photographs: what is cut, what is left out, and on which side of the split it goes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.plan import Request
from data_prep.sources.crops import CropUnit, count_crops
from data_prep.sources.folder import Folder
from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from dualscore.pictures.photographs import read_rgb
from fakes import photograph, photograph_paths
from prep_helpers import build, names_of, read_split

SIDE = 96
NAMES = list(photograph_paths())


def _fill(folder: Path, names: list[str] = NAMES, kind: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        photograph(name, SIDE).save(folder / f"{name}.{kind}")


def _build(tmp_path: Path, **options: object) -> Manifest:
    shares: dict[str, Any] = {"val_fraction": 0.3, "test_fraction": 0.1}
    return build("folder", tmp_path / "out", src=tmp_path / "src", size=16, **shares | options)


def _warnings(tmp_path: Path) -> str:
    return "\n".join(Manifest.load(tmp_path / "out").source["warnings"])


def test_no_photograph_in_two_splits(tmp_path: Path) -> None:
    """Each photograph gets pixels of its own red value, so that a crop tells where it came from."""
    (tmp_path / "src").mkdir()
    values = list(range(10, 250, 12))
    for value in values:
        pixels = np.full((40, 48, 3), value, np.uint8)
        pixels[..., 2] = 255 - value // 2
        Image.fromarray(pixels).save(tmp_path / "src" / f"{value}.png")
    for seed in (0, 1):
        out = tmp_path / f"{seed}"
        build("folder", out, src=tmp_path / "src", size=8, val_fraction=0.25, seed=seed)
        names = names_of(Manifest.load(out))
        shown = {split: set(read_split(out, split)[:, 0].ravel().tolist()) for split in names}
        assert {split: len(found) for split, found in shown.items()} == {"train": 13, "val": 5, "test": 2}
        assert set.union(*shown.values()) == set(values)
        for split, found in shown.items():
            assert {int(name.removesuffix(".png")) for name in names[split]} == found
    first, second = (names_of(Manifest.load(tmp_path / seed)) for seed in ("0", "1"))
    assert first["val"] != second["val"]
    assert first["test"] != second["test"]


def test_training_crops_of_a_group_are_shuffled_together(tmp_path: Path) -> None:
    _fill(tmp_path / "src")
    _build(tmp_path)
    train = read_split(tmp_path / "out", "train")
    names = names_of(Manifest.load(tmp_path / "out"))["train"]
    origin: dict[bytes, int] = {}
    for number, name in enumerate(names):
        pixels = np.asarray(Image.open(tmp_path / "src" / name))
        for y in range(0, SIDE - 15, 8):
            for x in range(0, SIDE - 15, 8):
                origin[pixels[y : y + 16, x : x + 16].transpose(2, 0, 1).tobytes()] = number
    order = [origin[image.tobytes()] for image in train if image.tobytes() in origin]
    assert len(order) > 400
    changes = np.count_nonzero(np.diff(order)) / len(order)
    assert changes > 0.6  # 3/4 on average; 1/100 if the photographs followed one another


def test_groups_are_bounded_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path / "src")
    _build(tmp_path)
    monkeypatch.setattr("data_prep.sources.folder.GROUP_CROPS", 400)
    request = Request("folder", tmp_path / "src", size=16, val_fraction=0.3, test_fraction=0.1, seed=0)
    units = Folder().plan(request).units
    assert [unit.images for unit in units if unit.split == "train"] == [300, 300]  # 121 + 25 + 4 each
    crops = []
    for unit in units:
        assert isinstance(unit, CropUnit)
        with unit.open() as images:
            if unit.split == "train":
                crops += [image.tobytes() for image in images.take(0, unit.images)]
    assert sorted(crops) == sorted(image.tobytes() for image in read_split(tmp_path / "out", "train"))


def test_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    _fill(tmp_path / "src", NAMES[:4])
    for workers in (1, 2):
        build("folder", tmp_path / f"{workers}", tmp_path / "src", workers, 16, 0.3)
    files = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir() if path.is_file()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "2").iterdir() if path.is_file()}


def test_grayscale_among_colour_is_left_out_and_named(tmp_path: Path) -> None:
    _fill(tmp_path / "src")
    photograph("coffee", SIDE).convert("L").save(tmp_path / "src" / "coffee.png")
    photograph("china", SIDE).convert("L").convert("RGB").save(tmp_path / "src" / "china.png")
    photograph("rocket", SIDE).convert("1").save(tmp_path / "src" / "rocket.png")
    manifest = _build(tmp_path)
    assert manifest.image_shape == (3, 16, 16)
    for name in ("coffee", "china", "rocket"):
        assert f"left out: {name}.png is grayscale and others are in colour" in _warnings(tmp_path)
        assert f"{name}.png" not in sum(names_of(manifest).values(), ())
    assert manifest.source["photographs"] == {"train": 2, "val": 1, "test": 1, "left_out": 3}


def test_all_grayscale_gives_one_channel(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name in NAMES[:3]:
        photograph(name, SIDE).convert("L").save(tmp_path / "src" / f"{name}.png")
    manifest = _build(tmp_path)
    assert manifest.image_shape == (1, 16, 16)
    assert manifest.source["warnings"] == []
    assert len(manifest.statistics.pixel_mean) == 1
    (name,) = names_of(manifest)["val"]
    pixels = np.asarray(Image.open(tmp_path / "src" / name))
    assert np.array_equal(read_split(tmp_path / "out", "val")[1, 0], pixels[:16, 16:32])


def test_copies_are_kept_once(tmp_path: Path) -> None:
    _fill(tmp_path / "src")
    (tmp_path / "src" / "z").mkdir()
    for name in NAMES:
        shutil.copy(tmp_path / "src" / f"{name}.png", tmp_path / "src" / "z" / f"copy of {name}.png")
    manifest = _build(tmp_path)
    assert manifest.source["photographs"] == {"train": 4, "val": 2, "test": 1, "left_out": 7}
    for name in NAMES:
        assert f"left out: z/copy of {name}.png is a copy of {name}.png" in _warnings(tmp_path)


def test_unusable_pictures_are_skipped_and_named(tmp_path: Path) -> None:
    _fill(tmp_path / "src", kind="jpg")
    raw = (tmp_path / "src" / "coffee.jpg").read_bytes()
    (tmp_path / "src" / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "src" / "page.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "src" / "empty.webp").write_bytes(b"")
    photograph("china", 15).save(tmp_path / "src" / "tiny.png")
    Image.fromarray(np.zeros((50, 50), np.float32)).save(tmp_path / "src" / "float.tif")
    (tmp_path / "src" / "notes.txt").write_text("not looked at")
    _fill(tmp_path / "src" / ".thumbnails")
    manifest = _build(tmp_path)
    assert manifest.source["photographs"] == {"train": 4, "val": 2, "test": 1, "left_out": 5}
    warnings = _warnings(tmp_path)
    assert "left out: cut.jpg cannot be decoded" in warnings
    assert "left out: page.png cannot be decoded" in warnings
    assert "left out: empty.webp cannot be decoded" in warnings
    assert "left out: tiny.png is too small: 15×15" in warnings
    assert "left out: float.tif has pixels of kind F" in warnings


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = photograph("coffee").crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 90° clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = read_rgb(tmp_path / "turned.png")
    assert upright.size == (40, 60)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_turned_photographs_become_shards(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    exif = Image.Exif()
    exif[274] = 8
    for name in NAMES[:3]:
        photograph(name).crop((0, 0, 70, 40)).save(tmp_path / "src" / f"{name}.png", exif=exif)
    manifest = _build(tmp_path)
    (name,) = names_of(manifest)["val"]
    turned = np.rot90(np.asarray(photograph(name.removesuffix(".png")).crop((0, 0, 70, 40))))
    first = read_split(tmp_path / "out", "val")[0]
    assert np.array_equal(first, turned[:16, :16].transpose(2, 0, 1))


def test_other_pixel_kinds_become_rgb(tmp_path: Path) -> None:
    image = photograph("flower", 32)
    pixels = np.asarray(image)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(32, 0)))
    clear.save(tmp_path / "clear.png")
    loaded = np.asarray(read_rgb(tmp_path / "clear.png"))
    assert (loaded[:, :16] == 255).all()
    assert np.array_equal(loaded[:, 16:], pixels[:, 16:])
    image.quantize(16).save(tmp_path / "palette.png")
    assert np.array_equal(
        np.asarray(read_rgb(tmp_path / "palette.png")), np.asarray(image.quantize(16).convert("RGB"))
    )
    deep = pixels[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "deep.png")), pixels[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("size", [(16, 16), (15, 40), (97, 61), (64, 64), (33, 130)])
@pytest.mark.parametrize("stride", [8, 16])
def test_crops_are_counted_beforehand(size: tuple[int, int], stride: int) -> None:
    expected = 0
    for factor in (1, 2, 4):
        width, height = size[0] // factor, size[1] // factor
        expected += len(range(0, width - 15, stride)) * len(range(0, height - 15, stride))
    assert count_crops(size, 16, stride) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no photograph"),
        (["coffee"], "holds 1 usable photograph, but training and validation need one each"),
    ],
)
def test_too_few_photographs(tmp_path: Path, files: list[str], message: str) -> None:
    (tmp_path / "src").mkdir()
    _fill(tmp_path / "src", files)
    with pytest.raises(DataError, match=message):
        _build(tmp_path)
    assert not (tmp_path / "out").exists()


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(b"no")
    with pytest.raises(
        DataError, match=r"no usable photograph; the first problem: left out: a\.png cannot be"
    ):
        _build(tmp_path)


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        (0.001, 0.001, {"train": 5, "val": 1, "test": 1}),
        (0.3, 0.3, {"train": 3, "val": 2, "test": 2}),
        (0.99, 0.001, {"train": 1, "val": 5, "test": 1}),
        (0.001, 0.99, {"train": 1, "val": 1, "test": 5}),
    ],
)
def test_each_split_gets_a_photograph(
    tmp_path: Path, val: float, test: float, expected: dict[str, int]
) -> None:
    _fill(tmp_path / "src")
    manifest = _build(tmp_path, val_fraction=val, test_fraction=test)
    assert {split: len(names) for split, names in names_of(manifest).items()} == expected
    assert list(manifest.splits) == ["train", "val", "test"]


def test_the_validation_photographs_are_not_changed_by_the_test_split(tmp_path: Path) -> None:
    """Nor by its size: those that are trained on give way."""
    _fill(tmp_path / "src")
    few, many = (
        names_of(build("folder", tmp_path / f"{share}", tmp_path / "src", 1, 16, 0.3, share))
        for share in (0.1, 0.4)
    )
    assert few["val"] == many["val"]
    assert set(few["test"]) < set(many["test"])


def test_of_two_photographs_none_is_left_for_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path / "src", NAMES[:2])
    manifest = _build(tmp_path)
    assert list(manifest.splits) == ["train", "val"]
    told = "2 photographs are too few for a test split: figures will be of the validation photograph"
    assert told in _warnings(tmp_path)
    assert told in " ".join(capsys.readouterr().out.split())
    assert manifest.source["photographs"] == {"train": 1, "val": 1, "left_out": 0}


def test_a_name_that_a_terminal_would_obey_is_kept_in_part(tmp_path: Path) -> None:
    _fill(tmp_path / "src", NAMES[:3])
    for number, path in enumerate(sorted((tmp_path / "src").iterdir())):
        path.rename(path.with_name(f"{number}\x1b[2J\n.png"))
    _build(tmp_path)
    names = names_of(Manifest.load(tmp_path / "out"))
    assert sorted(sum(names.values(), ())) == [
        f"{number}\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}.png" for number in range(3)
    ]
