"""The photographs of the boxed models: read from packages, made small, cut, and none but those listed."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.cli import main
from data_prep.plan import Request
from data_prep.sources import wallpapers
from data_prep.sources.wallpaper_list import PACKAGES, WALLPAPERS, WHEELS, Listed
from data_prep.sources.wallpapers import LONG_SIDES, Wallpapers
from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from dualscore.shipped.boxed import BOXED, boxed
from fakes import photograph

LICENCES = (
    "GPL-2+", "LGPL-3", "CC-BY-2.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "public domain"
)  # fmt: skip


def deb(members: dict[str, bytes], compression: str = "xz") -> bytes:
    """A Debian package: an ar archive of a version, a control archive and the files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data.getvalue()}
    packed = b"!<arch>\n"
    for name, content in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


def jpeg(name: str, width: int, height: int) -> bytes:
    file = io.BytesIO()
    photograph(name).resize((width, height)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two packages with three photographs, and a list that has them and one of a wheel."""
    contents = {
        ("walls", "usr/a.jpg"): (jpeg("coffee", 700, 400), "train"),
        ("walls", "usr/b.jpg"): (jpeg("astronaut", 400, 500), "train"),
        ("more", "usr/share/c.jpg"): (jpeg("rocket", 390, 200), "val"),
    }
    listed = tuple(
        Listed(Path(path).stem, package, path, hashlib.sha256(raw).hexdigest(), "somebody", "CC0-1.0", split)
        for (package, path), (raw, split) in contents.items()
    )
    monkeypatch.setattr(wallpapers, "WALLPAPERS", listed)
    monkeypatch.setattr(wallpapers, "WHEELS", tuple(one for one in WHEELS if one.name == "chelsea"))
    monkeypatch.setattr(wallpapers, "PACKAGES", ("walls", "more"))
    src = tmp_path / "src"
    src.mkdir()
    for package, compression in (("walls", "xz"), ("more", "gz")):
        files = {path: raw for (name, path), (raw, _) in contents.items() if name == package}
        (src / f"{package}_1.0_all.deb").write_bytes(deb(files | {"usr/other.txt": b"text"}, compression))
    return src


def plan_of(src: Path, size: int = 64):  # noqa: ANN201 - a plan
    return Wallpapers().plan(Request("photographs", src, size=size, seed=0))


def test_photographs_are_cut_at_every_size_that_they_have(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["build", "photographs", "--src", str(packages), "--size", "64", "--out", str(out)]) == 0
    manifest = Manifest.load(out)
    assert manifest.image_shape == (3, 64, 64)
    wide = (384 // 64) * (219 // 64) + (640 // 64) * (366 // 64)  # 700×400 at two sizes
    high = (307 // 64) * (384 // 64)  # 400×500 at one
    assert manifest.splits["train"].images == wide + high
    chelsea = (384 // 64) * (255 // 64)  # 451×300
    assert manifest.splits["val"].images == (384 // 64) * (197 // 64) + chelsea


def test_crops_are_of_the_photograph_that_they_say(packages: Path) -> None:
    plan = plan_of(packages)
    for unit in plan.units:
        with unit.open() as images:
            crops = images.take(0, unit.images)
        numbers = unit.numbers()
        assert len(numbers) == len(crops) == unit.images
        assert crops.dtype == np.uint8
        names = plan.photographs[unit.split].names  # type: ignore[index]
        for number, name in enumerate(names):
            own = {"a": "coffee", "b": "astronaut", "c": "rocket", "chelsea": "chelsea"}[name]
            wanted = np.asarray(photograph(own)).mean(axis=(0, 1))
            found = crops[numbers == number].mean(axis=(0, 2, 3))
            assert np.abs(found - wanted).max() < 35, name


def test_the_same_request_gives_the_same_crops_and_another_seed_other_jpegs(packages: Path) -> None:
    def crops(seed: int) -> np.ndarray:
        plan = Wallpapers().plan(Request("photographs", packages, size=64, seed=seed))
        (unit,) = (unit for unit in plan.units if unit.split == "val")
        with unit.open() as images:
            return images.take(0, unit.images)

    assert np.array_equal(crops(0), crops(0))
    assert not all(np.array_equal(crops(0), crops(seed)) for seed in (1, 2, 3))


def test_unpacked_packages_do_as_well(packages: Path) -> None:
    before = [unit.images for unit in plan_of(packages).units]
    for package in packages.glob("*.deb"):
        for path, content in wallpapers._unpacked(
            package, {"usr/a.jpg", "usr/b.jpg", "usr/share/c.jpg"}
        ).items():
            (packages / path).parent.mkdir(parents=True, exist_ok=True)
            (packages / path).write_bytes(content)
        package.unlink()
    assert [unit.images for unit in plan_of(packages).units] == before


def _without(src: Path) -> None:
    (src / "more_1.0_all.deb").unlink()


def _cut(src: Path) -> None:
    path = src / "walls_1.0_all.deb"
    path.write_bytes(path.read_bytes()[:2000])


def _foreign(src: Path) -> None:
    (src / "more_1.0_all.deb").write_bytes(b"PK\x03\x04" + bytes(500))


def _another(src: Path) -> None:
    (src / "more_1.0_all.deb").write_bytes(deb({"usr/share/c.jpg": jpeg("rocket", 391, 200)}))


def _empty(src: Path) -> None:
    (src / "more_1.0_all.deb").write_bytes(deb({"usr/nothing": b""}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without, "apt-get download more"),
        (_cut, "walls_1.0_all.deb"),
        (_foreign, "is not a Debian package"),
        (_another, "is not the photograph that is listed"),
        (_empty, "does not hold usr/share/c.jpg"),
    ],
)
def test_packages_that_are_not_those_are_refused(
    packages: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(packages)
    with pytest.raises(DataError, match=reason):
        plan_of(packages)


def test_the_list_is_of_packages_that_may_be_given_away() -> None:
    named = "mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers"
    assert list(PACKAGES) == named.split()
    everything = (*WALLPAPERS, *WHEELS)
    assert {one.shipper for one in WHEELS} == {"skimage", "sklearn"}
    assert len({one.sha256 for one in everything}) == len({one.name for one in everything}) == len(everything)
    for one in everything:
        assert one.author
        assert one.licence in LICENCES
        assert one.split in {"train", "val"}
    assert tuple(sorted(LONG_SIDES)) == LONG_SIDES


@pytest.mark.parametrize("name", BOXED)
def test_the_cards_in_the_box_name_every_photograph_with_its_author_and_licence(name: str) -> None:
    folder = boxed(name)
    assert folder is not None
    card = (folder / "README.md").read_text()
    for one in (*WALLPAPERS, *WHEELS):
        assert f"| {one.name} | {one.shipper} | {one.author} | {one.licence} |" in card
    assert "of any size" in card


def test_photographs_of_the_wheels_are_those_listed() -> None:
    for one in WHEELS:
        path = wallpapers.locate(one.shipper, one.path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one.sha256
        with Image.open(path) as image:
            assert min(image.size) >= 128
