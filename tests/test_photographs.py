"""Files that are read as one picture of 8-bit RGB, and those that are refused by name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dualscore.pictures.photographs import UnsuitableError, read_rgb
from dualscore.scoring import score_images
from test_scoring import of_any_size, picture, score

DEEP = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3), dtype=np.uint16)


def deep_png(pixels: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def several(path: Path, count: int = 3, **options: object) -> Path:
    first, *rest = (picture(k) for k in range(count))
    first.save(path, save_all=True, append_images=rest, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_is_refused_by_its_frames(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    with pytest.raises(UnsuitableError, match="is animated, 3 frames"):
        read_rgb(several(tmp_path / f"moving.{suffix}", **options))
    still = several(tmp_path / f"still.{suffix}", count=1, **options)
    assert read_rgb(still).size == (8, 8)


def test_pages_are_refused_and_previews_are_not(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match="has 3 pages"):
        read_rgb(several(tmp_path / "pages.tif"))
    # What telephones write: the photograph, then what belongs to it.
    several(tmp_path / "telephone.jpg", format="MPO", quality=100, subsampling=0)
    with Image.open(tmp_path / "telephone.jpg") as file:
        assert (file.format, getattr(file, "n_frames", 1)) == ("MPO", 3)
    found = np.asarray(read_rgb(tmp_path / "telephone.jpg")).astype(int)
    assert np.abs(found - np.asarray(picture(0))).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_sixteen_bits_the_upper_eight_are_read(tmp_path: Path, suffix: str) -> None:
    gray, colour = tmp_path / f"gray.{suffix}", tmp_path / f"colour.{suffix}"
    Image.fromarray(DEEP[..., 0]).save(gray)
    if suffix == "png":
        colour.write_bytes(deep_png(DEEP))
    else:
        tifffile.imwrite(colour, DEEP)
    assert np.array_equal(np.asarray(read_rgb(gray)), (DEEP[..., :1] >> 8).repeat(3, axis=2))
    assert np.array_equal(np.asarray(read_rgb(colour)), DEEP >> 8)


def test_planes_of_sixteen_bits_are_refused_and_those_of_eight_are_read(tmp_path: Path) -> None:
    """Pillow reads the former without a word, wrongly."""
    path, options = tmp_path / "planes.tif", {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(path, DEEP.transpose(2, 0, 1), **options)
    with pytest.raises(UnsuitableError, match="planes of 16-bit colour"):
        read_rgb(path)
    tifffile.imwrite(path, (DEEP >> 8).astype(np.uint8).transpose(2, 0, 1), **options)
    assert np.array_equal(np.asarray(read_rgb(path)), DEEP >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_other_numbers_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(DEEP[..., 0].astype(kind)).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=r"has pixels of kind [IF], which is not supported"):
        read_rgb(tmp_path / "odd.tif")


def test_scoring_leaves_them_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    several(folder / "moving.png")
    several(folder / "pages.tif")
    (folder / "deep.png").write_bytes(deep_png(DEEP))
    given = [folder, several(tmp_path / "moving.gif")]
    (tmp_path / "model.ckpt").write_bytes(b"stands for a model")
    monkeypatch.setattr(score_images, "load", lambda _: of_any_size(3))
    with (tmp_path / "printed.txt").open("w") as file:
        console = Console(file=file, width=300)
        summary = score(tmp_path / "model.ckpt", given, tmp_path / "out", console)
    assert (summary["images"], summary["failed"]) == (1, 3)
    printed = (tmp_path / "printed.txt").read_text()
    assert f"left out: 2 images; the first, {folder / 'moving.png'} is animated, 3 frames" in printed
    assert f"left out: {folder / 'pages.tif'} has 3 pages" in printed
    assert "3 left out, see" in printed
