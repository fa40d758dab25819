"""Copies of a photograph: they are told from other photographs, and the best of them is used."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.sources.near_copies import near_copies, waves
from data_prep.sources.photographs import Photograph, inspect
from fakes import photograph, photograph_paths
from prep_helpers import build, names_of

NAMES = list(photograph_paths())
Change = Callable[[Image.Image], Image.Image]


def prepared(folder: Path) -> tuple[set[str], str]:
    """The names of the photographs in a data set made of a folder, and its warnings."""
    manifest = build("folder", folder.parent / "shards", folder, size=16, val_fraction=0.2)
    return set(sum(names_of(manifest).values(), ())), "\n".join(manifest.source["warnings"])


def looked_at(image: Image.Image, name: str) -> Photograph:
    worth = image.width * image.height, 0, 0
    return Photograph(name, Path(), image.size, waves=waves(image), worth=worth)


def copied(images: list[Image.Image], change: Change) -> int:
    """How many of the changed images, among all others, are found to be copies of the right one."""
    before = [looked_at(image, str(k)) for k, image in enumerate(images)]
    after = [looked_at(change(image), f"{k} changed") for k, image in enumerate(images)]
    pairs = [sorted((one.name, two.name)) for one, two in near_copies(before + after)]
    assert all(two == f"{one} changed" for one, two in pairs)
    return len(pairs)


def within(side: int, how: Image.Resampling) -> Change:
    def change(image: Image.Image) -> Image.Image:
        small = image.copy()
        small.thumbnail((side, side), how)
        return small

    return change


def jpeg(quality: int, scale: float = 1.0) -> Change:
    def change(image: Image.Image) -> Image.Image:
        written = io.BytesIO()
        small = image.resize((round(scale * image.width), round(scale * image.height)))
        small.save(written, "JPEG", quality=quality)
        return Image.open(written).convert("RGB")

    return change


def levels(factor: float, of: float = 0.0) -> Change:
    def change(image: Image.Image) -> Image.Image:
        values = of + factor * (np.asarray(image, float) - of)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))

    return change


@pytest.mark.parametrize("how", ["BICUBIC", "LANCZOS", "BOX", "NEAREST"])
@pytest.mark.parametrize("side", [24, 32, 64])
def test_thumbnails_are_copies(side: int, how: str) -> None:
    assert copied([photograph(name) for name in NAMES], within(side, Image.Resampling[how])) == 7


@pytest.mark.parametrize("quality", [5, 10, 20])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_encoded_photographs_are_copies(quality: int, scale: float) -> None:
    small = [photograph(name).resize((160, 120)) for name in NAMES]
    assert copied(small, jpeg(quality, scale)) == 7


def test_encoded_photographs_of_little_contrast_are_copies() -> None:
    pale = [levels(0.03, of=128.0)(photograph(name)) for name in NAMES]
    assert copied(pale, jpeg(60, 0.5)) == 7


CHANGES: dict[str, Change] = {
    "brighter": levels(1.1),
    "darker": levels(0.9),
    "a border less": lambda i: i.crop(
        (i.width // 50, i.height // 50, i.width * 49 // 50, i.height * 49 // 50)
    ),
    **{turn.name: lambda i, turn=turn: i.transpose(turn) for turn in Image.Transpose},  # type: ignore[misc]
}


@pytest.mark.parametrize("change", CHANGES)
def test_brightened_mirrored_and_turned_photographs_are_copies(change: str) -> None:
    assert copied([photograph(name) for name in NAMES], CHANGES[change]) == 7


def test_other_photographs_are_no_copies() -> None:
    """Parts of photographs side by side, flat and noisy images: none is taken for another."""
    draw = np.random.default_rng(0)
    images = [photograph(n).crop((x, y, x + 144, y + 144)) for n in NAMES for x in (0, 144) for y in (0, 144)]
    images += [Image.fromarray(np.full((96, 96, 3), value, np.uint8)) for value in range(10, 250, 12)]
    images += [Image.fromarray(draw.integers(0, 256, (96, 96, 3), np.uint8)) for _ in range(20)]
    assert not near_copies([looked_at(image, str(k)) for k, image in enumerate(images)])


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Seven photographs."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in NAMES:
        photograph(name).reduce(2).save(folder / f"{name}.png")
    return folder


ALL = {f"{name}.png" for name in NAMES}
COPIES = {
    "thumbnail": lambda image, path: within(24, Image.Resampling.BICUBIC)(image).save(path),
    "jpeg": lambda image, path: image.save(path.with_suffix(".jpg"), quality=5),
    "webp": lambda image, path: image.save(path.with_suffix(".webp"), quality=30),
    "palette": lambda image, path: image.convert("P", palette=Image.Palette.ADAPTIVE).save(path),
    "cmyk": lambda image, path: image.convert("CMYK").save(path.with_suffix(".tif")),
    "metadata": lambda image, path: image.save(path, optimize=True),
}


@pytest.mark.parametrize("kind", COPIES)
def test_near_copies_are_left_out(album: Path, kind: str) -> None:
    """Of pictures of one size the one without loss is kept, although its name comes later."""
    (album / "a").mkdir()
    for name in NAMES:
        COPIES[kind](photograph(name).reduce(2), album / "a" / f"{name}.png")
    used, warnings = prepared(album)
    assert len(used) == 7
    assert kind == "metadata" or used == ALL
    if kind == "thumbnail":  # of 24 pixels the longer side
        assert warnings.count("scaled, turned or re-encoded copy") + warnings.count("is too small") == 7
    else:
        assert (
            warnings.count("is a scaled, turned or re-encoded copy of") + warnings.count(" is a copy of ")
            == 7
        )


def test_the_larger_copy_is_kept(album: Path) -> None:
    image = photograph("coffee").reduce(2)
    image.resize((2 * image.width, 2 * image.height)).save(album / "z.jpg")
    used, warnings = prepared(album)
    assert used == ALL - {"coffee.png"} | {"z.jpg"}
    assert "left out: coffee.png is a scaled, turned or re-encoded copy of z.jpg" in warnings


def test_the_best_of_copies_of_one_size_is_kept(tmp_path: Path) -> None:
    """By what is kept of it, then by the length of its file, then the first."""
    image = photograph("coffee").reduce(2)
    image.convert("CMYK").save(tmp_path / "1.jpg", quality=95)
    image.convert("P").save(tmp_path / "2.png")
    image.save(tmp_path / "3.jpg", quality=10)
    image.save(tmp_path / "4.webp", quality=90)
    image.save(tmp_path / "5.jpg", quality=90, icc_profile=bytes(2_000_000))  # the longest file
    image.save(tmp_path / "6.png")
    found = [inspect((Photograph(path.name, path), 16)) for path in sorted(tmp_path.iterdir())]
    best = ["6.png", *sorted(["4.webp", "5.jpg"], key=lambda n: -(tmp_path / n).stat().st_size), "3.jpg"]
    for count, name in enumerate(best):
        rest = [photo for photo in found if photo.name not in best[:count]]
        assert {kept.name for _, kept in near_copies(rest)} == {name}
