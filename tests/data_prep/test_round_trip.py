"""What comes out of the shards is, pixel by pixel and in order, what the sources hold."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dualscore.data.shards import Manifest
from fakes import photograph, write_cifar10, write_imagenet64_png, write_official_imagenet
from prep_helpers import build, contents, names_of, read_split


@pytest.mark.parametrize("form", ["pickle", "npz"])
@pytest.mark.parametrize("size", [32, 64])
def test_official_imagenet(tmp_path: Path, form: str, size: int) -> None:
    train, val, test = write_official_imagenet(tmp_path / "src" / "sub", size, 50, 21, form, batches=3)
    build(f"imagenet{size}", tmp_path / "out", src=tmp_path / "src")
    assert np.array_equal(read_split(tmp_path / "out", "train"), train)
    assert np.array_equal(read_split(tmp_path / "out", "val"), val)
    assert np.array_equal(read_split(tmp_path / "out", "test"), test)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.release == (
        f"imagenet{size} down-sampled, official anti-aliased release (Chrabaszcz et al. 2017)"
    )
    assert manifest.source["batches"] == [1, 2, 3]
    assert "only 3 of 10" in manifest.source["warnings"][0]


def test_ten_batches_keep_their_numeric_order_and_give_no_warning(tmp_path: Path) -> None:
    train, *_ = write_official_imagenet(tmp_path / "src", 32, 40, 8, batches=10)
    build("imagenet32", tmp_path / "out", src=tmp_path / "src")
    assert np.array_equal(read_split(tmp_path / "out", "train"), train)  # 10 comes after 9, not after 1
    source = Manifest.load(tmp_path / "out").source
    assert source["warnings"] == []
    assert source["batches"] == list(range(1, 11))


def test_official_imagenet_in_zip_archives(tmp_path: Path) -> None:
    train, val, test = write_official_imagenet(tmp_path / "plain", 64, 24, 9)
    (tmp_path / "src").mkdir()
    for archive, names in {
        "Imagenet64_train_part1.zip": ["train_data_batch_1"],
        "Imagenet64_train_part2.zip": ["train_data_batch_2"],
        "Imagenet64_val.zip": ["val_data"],
    }.items():
        with zipfile.ZipFile(tmp_path / "src" / archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name in names:
                file.write(tmp_path / "plain" / name, name)
    build("imagenet64", tmp_path / "out", src=tmp_path / "src")
    assert np.array_equal(read_split(tmp_path / "out", "train"), train)
    assert np.array_equal(read_split(tmp_path / "out", "val"), val)
    assert np.array_equal(read_split(tmp_path / "out", "test"), test)


@pytest.mark.parametrize("archive", [False, True])
def test_cifar10(tmp_path: Path, archive: bool) -> None:
    train, val, test = write_cifar10(tmp_path / "src", archive=archive)
    build("cifar10", tmp_path / "out", src=tmp_path / "src")
    assert np.array_equal(read_split(tmp_path / "out", "train"), train)
    assert np.array_equal(read_split(tmp_path / "out", "val"), val)
    assert np.array_equal(read_split(tmp_path / "out", "test"), test)


@pytest.mark.parametrize("form", [".tar", ".tar.gz", ".zip", ""])
def test_imagenet64_png(tmp_path: Path, form: str) -> None:
    train, val, test = write_imagenet64_png(tmp_path / "src", 30, 11, form)
    build("imagenet64_png", tmp_path / "out", src=tmp_path / "src", images_per_shard=7)
    assert np.array_equal(read_split(tmp_path / "out", "train"), train)
    assert np.array_equal(read_split(tmp_path / "out", "val"), val)
    assert np.array_equal(read_split(tmp_path / "out", "test"), test)
    assert "not comparable" in Manifest.load(tmp_path / "out").release


@pytest.mark.parametrize(
    ("rows", "most", "share", "expected"),
    [
        (128_116, 10_000, 10, 10_000),  # ImageNet's tenth training batch
        (1_281_149, 10_000, 10, 10_000),  # all of the PNG release
        (10_000, 5_000, 2, 5_000),  # data_batch_5 of CIFAR-10
        (50, 10_000, 10, 5),
        (9, 10_000, 10, 1),
    ],
)
def test_the_end_of_the_training_images_validates(rows: int, most: int, share: int, expected: int) -> None:
    from data_prep.sources.archive import FileRef
    from data_prep.sources.batches import BatchUnit, held_out, split_last

    assert held_out(rows, most, share) == expected
    first, last = (BatchUnit("train", n, FileRef(Path("x")), (3, 32, 32), rows=n) for n in (7, rows))
    units = split_last([first, last], most, share)
    assert [(u.split, u.start, u.images, u.rows) for u in units] == [
        ("train", 0, 7, 7),
        ("train", 0, rows - expected, rows),
        ("val", rows - expected, expected, rows),
    ]


def _all_crops(image: np.ndarray, side: int, stride: int) -> list[bytes]:
    """Every crop by plain loops, as an independent reference; ``image`` is (H, W, 3) uint8."""
    crops = []
    for factor in (1, 2, 4):
        height, width = (length // factor for length in image.shape[:2])
        blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        small = np.floor(blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
        for y in range(0, height - side + 1, stride):
            for x in range(0, width - side + 1, stride):
                crops.append(small[y : y + side, x : x + side].transpose(2, 0, 1).tobytes())
    return crops


def test_demo_holds_every_crop_of_its_photographs(tmp_path: Path) -> None:
    build("demo", tmp_path / "out", size=32)
    for split, names in (("val", ("chelsea", "flower")), ("test", ("grace_hopper", "ihc"))):
        expected = []
        for name in names:
            expected += _all_crops(np.asarray(photograph(name)), 32, 32)
        assert [image.tobytes() for image in read_split(tmp_path / "out", split)] == expected
    train = [image.tobytes() for image in read_split(tmp_path / "out", "train")]
    expected = []
    for name in ("astronaut", "coffee", "rocket", "motorcycle_left", "china"):
        expected += _all_crops(np.asarray(photograph(name)), 32, 16)
    assert train != expected  # shuffled
    assert sorted(train) == sorted(expected)


def test_the_demos_halves_are_its_photographs_and_share_none(tmp_path: Path) -> None:
    for name in ("demo", "demo_a", "demo_b"):
        build(name, tmp_path / name, size=64)
    whole, a, b = (
        [image.tobytes() for image in read_split(tmp_path / name, "train")]
        for name in ("demo", "demo_a", "demo_b")
    )
    assert sorted(a + b) == sorted(whole)
    names = [set(names_of(Manifest.load(tmp_path / name))["train"]) for name in ("demo_a", "demo_b")]
    assert not names[0] & names[1]
    for split in ("val", "test"):
        held_out = [read_split(tmp_path / name, split) for name in ("demo", "demo_a", "demo_b")]
        assert all(np.array_equal(held_out[0], other) for other in held_out[1:])


def test_small_sets_still_get_several_shards(tmp_path: Path) -> None:
    write_official_imagenet(tmp_path / "src", 32, 100, 16, batches=1)
    build("imagenet32", tmp_path / "out", src=tmp_path / "src")
    splits = Manifest.load(tmp_path / "out").splits
    assert len(splits["train"].shards) == 8
    assert len(splits["test"].shards) == 8


def test_result_depends_on_the_request_alone(tmp_path: Path) -> None:
    write_official_imagenet(tmp_path / "src", 32, 60, 20, batches=4)
    build("imagenet32", tmp_path / "one", src=tmp_path / "src", workers=1)
    shutil.copytree(tmp_path / "src", tmp_path / "elsewhere")  # keeps the times of the files
    build("imagenet32", tmp_path / "three", src=tmp_path / "elsewhere", workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_seed_decides_the_order_only(tmp_path: Path) -> None:
    for seed in (0, 1):
        build("demo", tmp_path / f"{seed}", size=64, seed=seed)
    first, second = (read_split(tmp_path / f"{seed}", "train").reshape(-1, 3 * 64 * 64) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
