"""Folders as people have them: nothing is left out in silence, and one bad entry ends nothing."""

import csv
import os
import struct
from contextlib import suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data_prep.plan import Request
from data_prep.sources.demo import TRAIN, Demo
from data_prep.sources.photographs import Photograph, inspect
from dualscore.data.shards import Manifest
from dualscore.draw_images import DrawOptions, read_images
from dualscore.errors import DataError, SamplingError
from dualscore.pictures.photographs import UnsuitableError, read_rgb
from dualscore.pictures.walk import NO_PHOTOGRAPHS, is_picture, walk
from dualscore.sampling.sample_images import Method
from dualscore.scoring.image_files import ImageFiles, Problems, Size, decode, entries, find, read_batches
from fakes import photograph, photograph_paths, write_cifar10
from prep_helpers import build, names_of

NAMES = list(photograph_paths())
SIDE = 64


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Seven photographs."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in NAMES:
        photograph(name, SIDE).save(folder / f"{name}.png")
    return folder


def prepared(folder: Path, **options: object) -> tuple[set[str], str]:
    """The names of the photographs in a data set made of a folder, and its warnings."""
    out = folder.parent / "shards"
    manifest: Manifest = build("folder", out, folder, size=16, val_fraction=0.2, **options)  # type: ignore[arg-type]
    return set(sum(names_of(manifest).values(), ())), "\n".join(manifest.source["warnings"])


def scored(folder: Path, side: int = SIDE, resize: bool = False) -> tuple[list[str], dict[str, str]]:
    """The names of the images that scoring reads, and the reason for each that it leaves out."""
    written = StringIO()
    files = ImageFiles([folder], folder.parent / "out", Size(3, side, side, resize), batch_size=3)
    with read_batches(files, 0, Problems(written), Console(quiet=True), "") as chunks:
        found = [Path(path).name for chunk in chunks for path in chunk.paths]
    rows = csv.reader(StringIO(written.getvalue()))
    return found, {Path(path).name: reason for path, reason in rows}


ALL = {f"{name}.png" for name in NAMES}
BAD_ENTRIES = {
    "dangling.png": lambda path: path.symlink_to("nowhere"),
    "gone album": lambda path: path.symlink_to("/not/mounted"),
    "loop.png": lambda path: path.symlink_to(path),
    "pipe.jpg": os.mkfifo,
    "empty.jpg": Path.touch,
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_named_and_the_rest_goes_on(album: Path, name: str) -> None:
    BAD_ENTRIES[name](album / name)
    found, left_out = scored(album)
    assert set(found) == ALL
    assert set(left_out) == {name}
    used, warnings = prepared(album)
    assert used == ALL
    assert f"left out: {name} " in warnings


@pytest.mark.parametrize("raw", [b"caf\xe9.png", b"\xff\xfe.jpg", b"f\xe9te/a.png"])
def test_a_name_that_is_not_utf8_is_a_name(album: Path, raw: bytes) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(album), raw)))
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    found, left_out = scored(album)
    assert len(found) == 8
    assert not left_out
    used, _ = prepared(album)
    assert len(used) == 8
    path.write_bytes(b"damaged")
    os.rename(album.parent / "shards", album.parent / "before")
    used, warnings = prepared(album)
    assert used == ALL
    assert "left out: " in warnings
    assert warnings.isprintable() or "\n" in warnings


ORIENTATION = 274


@pytest.mark.parametrize(
    "entry",
    [
        (2, 4, b"6\0\0\0"),  # a text
        (3, 2, struct.pack("<HH", 6, 6)),  # two numbers
        (5, 1, struct.pack("<I", 26)),  # a fraction
        (7, 4, b"\1\2\3\4"),  # anything
        (12, 1, struct.pack("<I", 4000)),  # a float that lies behind the end
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_of_another_type_ends_nothing(
    album: Path, entry: tuple[int, int, bytes], suffix: str
) -> None:
    kind, count, value = entry
    head = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", ORIENTATION, kind, count) + value + b"\0\0\0\0"
    image = photograph("coffee", 2 * SIDE).crop((SIDE, SIDE, 2 * SIDE, 2 * SIDE))
    image.save(album / f"odd.{suffix}", exif=b"Exif\0\0" + head + b"\1\0\0\0\2\0\0\0")
    found, left_out = scored(album)
    assert set(found) | set(left_out) == ALL | {f"odd.{suffix}"}
    assert set(found) >= ALL


@pytest.mark.parametrize("error", [TypeError("x"), struct.error("x"), ZeroDivisionError(), RuntimeError()])
def test_whatever_pillow_raises_is_said_of_the_file(
    album: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Image.Image) -> Image.Image:
        raise error

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_rgb(album / "coffee.png")
    assert inspect((Photograph("coffee.png", album / "coffee.png"), 16)).problem


def test_denoising_leaves_a_bad_file_out_and_goes_on(album: Path, tmp_path: Path) -> None:
    os.mkfifo(album / "pipe.jpg")
    (album / "loop.png").symlink_to("loop.png")
    model = SimpleNamespace(image_shape=(1, SIDE, SIDE))
    options = DrawOptions(tmp_path, 1, Method.metropolis, 2, 0, "cpu", 1)
    given = read_images(model, sorted(album.iterdir()), options)  # type: ignore[arg-type]
    assert len(given.clean) == len(given.paths) == 7
    assert [line.split("/")[-1].split(":")[0] for line in given.left_out] == ["loop.png", "pipe.jpg"]
    with pytest.raises(SamplingError, match=r"pipe\.jpg: is not a file but a pipe"):
        read_images(model, [album / "pipe.jpg"], options)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jfif", "gif", "JPE", "ppm", "tga", "avif", "mpo"])
def test_what_pillow_opens_is_a_photograph(album: Path, suffix: str) -> None:
    kind = {"jfif": "JPEG", "JPE": "JPEG"}.get(suffix)
    image = photograph("coffee", 2 * SIDE).crop((SIDE, SIDE, 2 * SIDE, 2 * SIDE))
    try:
        image.save(album / f"x.{suffix}", kind)
    except (KeyError, ValueError):
        pytest.skip("this Pillow has no AVIF")
    assert set(scored(album)[0]) == ALL | {f"x.{suffix}"}
    assert prepared(album)[0] == ALL | {f"x.{suffix}"}


def test_every_ending_that_pillow_writes_and_opens_is_a_photographs(tmp_path: Path) -> None:
    """Found by writing a picture under each of its endings."""
    endings = Image.registered_extensions()
    opened = set()
    for ending, kind in endings.items():
        path = tmp_path / f"x{ending}"
        for mode in ("RGB", "L", "1", "F", "RGBA"):
            with suppress(OSError, ValueError, KeyError, AttributeError):
                Image.new(mode, (64, 64)).save(path, kind)
                Image.open(path).load()
                opened.add(ending)
    photographs = opened - {ending for ending in opened if endings[ending] in NO_PHOTOGRAPHS}
    assert {".mpo", ".png", ".jfif", ".gif", ".tif", ".webp", ".j2k", ".sgi"} <= photographs
    assert not {ending for ending in photographs if not is_picture(f"x{ending.upper()}")}
    assert not is_picture("x.eps")


@pytest.mark.parametrize("suffix", ["heic", "HEIF", "cr2", "dng"])
def test_what_it_does_not_open_is_named(album: Path, suffix: str) -> None:
    (album / f"x.{suffix}").write_bytes(b"whatever")
    (album / "notes.txt").write_text("no picture")
    assert set(scored(album)[1]) == {f"x.{suffix}"}
    used, warnings = prepared(album)
    assert used == ALL
    assert f"left out: x.{suffix} is a picture of a kind" in warnings


def test_only_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "x.heic").write_bytes(b"whatever")
    with pytest.raises(DataError, match=r"holds no photograph .*x\.heic is a picture of a kind"):
        prepared(tmp_path / "album")


def test_links_are_followed_once(album: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in NAMES[:3]:
        (album / f"{name}.png").rename(other / f"{name}.png")
    (album / "b").symlink_to(other)
    (album / "a").symlink_to(other)
    (album / "self").symlink_to(album)
    (album / "up").symlink_to(tmp_path)
    (other / "back").symlink_to(album)
    found, left_out = scored(album)
    assert sorted(found) == sorted(ALL)
    assert set(left_out) == {"b", "self", "up", "back"}
    used, warnings = prepared(album)
    assert {name.split("/")[-1] for name in used} == ALL
    assert len(used) == 7
    assert "left out: b leads to a folder that is read already" in warnings


def test_a_file_counts_once(album: Path, tmp_path: Path) -> None:
    """By another link to it, within a folder or beside it, and given twice."""
    (album / "linked.png").symlink_to("coffee.png")
    os.link(album / "china.png", album / "zebra.png")
    found, left_out = scored(album)
    assert sorted(found) == sorted(ALL)
    assert set(left_out) == {"linked.png", "zebra.png"}
    near = tmp_path / "near"
    near.symlink_to(album)
    one = album / "rocket.png"
    given = [one, one, album / ".." / "album" / "rocket.png", near / "rocket.png", album, near]
    met = list(entries(given, tmp_path / "out"))
    assert met[0] == (one, None)
    assert sorted(os.path.realpath(path) for path in find(given, tmp_path / "out")) == sorted(
        str(album / name) for name in ALL
    )
    assert len(met) == 4 + 2 * 9


@pytest.mark.usefixtures("private")
def test_a_folder_that_cannot_be_read_is_named(album: Path) -> None:
    (album / "private").mkdir()
    photograph("coffee", SIDE).save(album / "private" / "x.png")
    assert [(e.path.name, e.problem) for e in walk(album) if e.problem] == [
        ("private", "cannot be read: Permission denied")
    ]
    found, left_out = scored(album)
    assert set(found) == ALL
    assert set(left_out) == {"private"}
    used, warnings = prepared(album)
    assert used == ALL
    assert "left out: private cannot be read: Permission denied" in warnings
    write_cifar10(album / "cifar")
    (album / "cifar" / "private").mkdir()
    with pytest.raises(DataError, match="private cannot be read: Permission denied"):
        build("cifar10", album.parent / "c", album / "cifar")


@pytest.mark.parametrize("hidden", [".thumbnails", ".cache/deep", ".Trash-0"])
def test_hidden_folders_are_passed_over(album: Path, hidden: str) -> None:
    (album / hidden).mkdir(parents=True)
    for name in NAMES:
        photograph(name, SIDE).resize((32, 32)).save(album / hidden / f"{name}.png")
    assert prepared(album) == (ALL, "")
    assert set(scored(album)[0]) == ALL


def test_a_touched_file_is_named(album: Path) -> None:
    prepared(album)
    os.utime(album / "coffee.png", ns=(1, 1))
    with pytest.raises(DataError, match=r"changed or touched: coffee\.png\): choose"):
        prepared(album)
    (album / "coffee.png").rename(album / "tea.png")
    with pytest.raises(DataError, match=r"new: tea\.png; gone: coffee\.png\): choose"):
        prepared(album)


def test_archives_of_another_name_or_form_are_told(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_cifar10(src, archive=True)
    (archive,) = src.iterdir()
    whole = build("cifar10", tmp_path / "1", src)
    renamed = archive.rename(src / "mine.tar.gz")
    assert build("cifar10", tmp_path / "2", renamed).splits == whole.splits
    with pytest.raises(DataError, match=r"\(it holds mine\.tar\.gz\): give"):
        build("cifar10", tmp_path / "3", src)
    with pytest.raises(DataError, match=r"neither BSR_bsds500\.tgz .*it holds mine\.tar\.gz"):
        build("bsds500", tmp_path / "3", src, size=16)
    (src / "train_64x64.tar").write_bytes(renamed.read_bytes())
    (src / "valid_64x64.tar").write_bytes(renamed.read_bytes())
    with pytest.raises(DataError, match=r"a tar\.gz by its content, not a tar .*: rename it to end with"):
        build("imagenet64_png", tmp_path / "3", src)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 7), (31, 64)])
def test_tiny_images_are_not_enlarged(album: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(album / "tiny.png")
    found, left_out = scored(album, resize=True)
    assert set(found) == ALL
    assert "too small to be enlarged to 64×64" in left_out["tiny.png"]
    with pytest.raises(UnsuitableError):
        decode(album / "tiny.png", Size(3, SIDE, SIDE, resize=True))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_demo_of_any_number_of_photographs(count: int) -> None:
    plan = Demo(tuple(TRAIN)[:count]).plan(Request("demo", None, size=16, seed=0))
    assert plan.photographs is not None
