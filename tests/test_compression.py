"""Files of images: the same pixels come back, or an error that names the image."""

import functools
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dualscore.cli import main
from dualscore.coding import BitsBack, NoiseLevels, OutOfRangeError, Stack
from dualscore.compression import compress_images, container, decompress_file
from dualscore.compression.coders import Coders, one_thread
from dualscore.compression.container import checksum
from dualscore.compression.decoder import RawTiles
from dualscore.compression.tiles import SIDE, cut, lay, tiles_of
from dualscore.errors import CodingError
from dualscore.model_files.loading import load
from workspace import ROOT

pytest.importorskip("constriction")
GRAY = "photographs_gray"
LEVELS = ["--levels", "6"]


def picture(height: int, width: int, channels: int = 0, seed: int = 0) -> Image.Image:
    """Something smooth with a little noise; of no channels, gray."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    shape = (height, width, channels) if channels else (height, width)
    wave = 120 + 60 * np.sin(y / 9.0) + 40 * np.cos(x / 7.0)
    wave = wave[..., None] if channels else wave
    return Image.fromarray(np.clip(wave + random.normal(0, 4, shape), 0, 255).astype(np.uint8))


def pixels(path: Path) -> NDArray[np.uint8]:
    """A file's pixels as Pillow reads them."""
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, `in/`, and the file of them, `images.dual`."""
    folder = tmp_path_factory.mktemp("coded")
    (folder / "in/deep").mkdir(parents=True)
    picture(70, 45, 3).save(folder / "in/colour.png")
    picture(33, 66, seed=1).save(folder / "in/gray.png")
    picture(20, 20, seed=2).convert("RGB").save(folder / "in/deep/equal.png")
    picture(20, 20, seed=3).save(folder / "in/deep/two words.jpg", quality=80)
    picture(1, 1, 3).save(folder / "in/deep/one.png")
    picture(1, 130, seed=4).save(folder / "in/line.png")
    assert main(["compress", str(folder / "in"), "--out", str(folder / "images.dual"), *LEVELS]) == 0
    return folder


def test_pixels_names_and_sizes_come_back_in_another_process_with_other_threads(
    coded: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "dualscore",
        "decompress",
        str(coded / "images.dual"),
        "--out",
        str(tmp_path),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "PYTHONPATH": str(ROOT / "src"),
    }
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "6 images, every pixel as it was" in said
    sent = {p.relative_to(coded / "in").with_suffix(".png"): pixels(p) for p in (coded / "in").rglob("*.*")}
    back = {p.relative_to(tmp_path): pixels(p) for p in tmp_path.rglob("*.png")}
    assert sent.keys() == back.keys()
    for name, values in sent.items():
        assert values.shape == back[name].shape
        assert np.array_equal(values, back[name])


def test_the_report_adds_up(coded: Path) -> None:
    report = json.loads((coded / "images.dual.json").read_text())
    found, size = report["bits_per_dim"], (coded / "images.dual").stat().st_size
    dimensions = sum(
        values.size for p in (coded / "in").rglob("*.*") if (values := pixels(p)).size and p.stem != "equal"
    )
    assert report["dimensions"] == dimensions + 400  # equal channels are coded once
    assert report["bytes"] == size
    assert found["file"] == pytest.approx(8 * size / report["dimensions"])
    rest = found["file"] - found["header"] - found["borrowed"] - found["raw"] - found["coded"]
    assert abs(rest) * report["dimensions"] < 64 * report["images"]  # words that are not full
    inside = report["of_what_was_coded"]
    assert inside["coded"] == found["coded"]  # nothing was stored as it is
    assert abs(inside["coder"]) < 0.15  # six levels are so few that some numbers lie far out
    assert inside["noise levels"] > 0.0
    assert len(report["models"]) == 2
    assert report["images"] == 6


def test_a_model_of_one_size_codes_larger_and_smaller_pictures_in_tiles(
    trained_demo: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number, (height, width) in enumerate([(16, 16), (16, 16), (40, 17), (3, 50)]):
        picture(height, width, seed=number).save(tmp_path / f"in/{number}.png")
    run = str(trained_demo / "runs/patches_dual")
    file = str(tmp_path / "a.dual")
    assert main(["compress", run, str(tmp_path / "in"), "--out", file, *LEVELS]) == 0
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 0
    for path in (tmp_path / "in").iterdir():
        assert np.array_equal(pixels(path), pixels(tmp_path / "back" / path.name))


def test_double_precision_codes_as_well(coded: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "a.dual")
    assert main(["compress", GRAY, str(coded / "in/gray.png"), "--out", file, "--double", *LEVELS]) == 0
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 0
    assert np.array_equal(pixels(coded / "in/gray.png"), pixels(tmp_path / "back/gray.png"))
    assert json.loads(Path(f"{file}.json").read_text())["double"] is True
    contents = container.unpack(Path(file))[0]
    single, double = (
        Coders(load(GRAY), NoiseLevels(contents.models[0].t0, contents.models[0].t1, 6), each, False)
        for each in (False, True)
    )
    assert double.model.like.dtype == torch.float64
    assert single.self_test(None) != double.self_test(None) == contents.models[0].self_test


def test_coding_takes_one_thread_whatever_there_are() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_four_orientations_take_fewer_bits(tmp_path: Path) -> None:
    from skimage import data

    Image.fromarray(data.camera()[200:264, 200:264]).save(tmp_path / "a.png")
    file, found = str(tmp_path / "a.dual"), []
    for more in ([], ["--orientations"]):
        command = ["compress", GRAY, str(tmp_path / "a.png"), "--out", file, "--levels", "12", *more]
        assert main(command) == 0
        found.append(json.loads(Path(f"{file}.json").read_text())["of_what_was_coded"])
    for what in ("bound", "coded"):
        assert found[1][what] < found[0][what] - 0.03
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "back/a.png"))


def test_what_would_lose_something_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    picture(20, 20, 4).save(tmp_path / "in/alpha.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "in/deep.png")
    picture(20, 20, 3).convert("CMYK").save(tmp_path / "in/inks.jpg")
    picture(20, 20, 3).save(tmp_path / "in/colour.png")
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    picture(20, 20).save(tmp_path / "in/good.png")
    file = tmp_path / "a.dual"
    assert main(["compress", GRAY, str(tmp_path / "in"), "--out", str(file), *LEVELS]) == 0
    said = capsys.readouterr().out
    for line in ("alpha.png", "inks.jpg", "colour.png is in colour, and photographs_gray is a model of gray"):
        assert line in said.replace("\n", " ")
    assert "broken.png cannot be decoded" in said
    assert json.loads(Path(f"{file}.json").read_text())["images"] == 1


def test_a_tile_that_fails_is_stored_as_it_is_and_counted(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that gives other pixels of the first tile of every batch than went in."""
    from dualscore.coding import BitsBack, Stack

    honest = BitsBack.pop

    def wrong(self: BitsBack, stack: Stack, count: int) -> Any:
        found = honest(self, stack, count)
        found[0, 0, 0, 0] ^= 1
        return found

    file = tmp_path / "a.dual"
    monkeypatch.setattr(BitsBack, "pop", wrong)
    assert main(["compress", GRAY, str(coded / "in/gray.png"), "--out", str(file), *LEVELS]) == 0
    monkeypatch.undo()
    report = json.loads(Path(f"{file}.json").read_text())
    assert report["raw_tiles"] == 2
    assert report["bits_per_dim"]["coded"] == 0.0
    assert report["of_what_was_coded"]["bound"] is None
    assert 0.0 < report["bits_per_dim"]["raw"] < 9.0
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 0
    assert np.array_equal(pixels(coded / "in/gray.png"), pixels(tmp_path / "back/gray.png"))


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A flip of a bit, some bytes written over, or a cut."""
    kind, place = random.integers(4), int(random.integers(len(content)))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + int(random.integers(1, 9)) :]
    if kind == 2:
        return content[:place] + random.bytes(8) + content[place + 8 :]
    return content[:place] + bytes([content[place] ^ (1 << int(random.integers(8)))]) + content[place + 1 :]


@pytest.fixture
def models_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress_file, "load", functools.cache(load))


@pytest.mark.usefixtures("models_read_once")
def test_damage_is_told_and_never_becomes_a_wrong_pixel(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, random = (coded / "images.dual").read_bytes(), np.random.default_rng(0)
    (tmp_path / "whole").write_bytes(content)
    named = 0
    for number in range(1000):
        file, out = tmp_path / "damaged.dual", tmp_path / f"back{number}"
        bad = damaged(content, random)
        if bad == content:
            continue
        file.write_bytes(bad)
        status = main(["decompress", str(file), "--out", str(out)])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        for path in out.rglob("*.png"):  # bytes after the end are not read
            original = next((coded / "in" / path.relative_to(out)).parent.glob(f"{path.stem}.*"))
            assert np.array_equal(pixels(path), pixels(original))
        if status == 0:
            assert len(list(out.rglob("*.png"))) == 6
            assert bad.startswith(content)
        else:
            assert status == 1
            assert "damaged" in said
            named += ".png" in said or ".jpg" in said
        shutil.rmtree(out, ignore_errors=True)
    assert named > 500


def rewritten(content: bytes, change: dict[str, Any]) -> bytes:
    """A file whose header says something else, with a right checksum."""
    _, length, _ = struct.unpack_from("<8sQ32s", content)
    document = json.loads(zlib.decompress(content[48 : 48 + length]))
    for key, value in change.items():
        at: Any = document
        *path, last = [int(k) if k.isdigit() else k for k in key.split(".")]
        for step in path:
            at = at[step]
        at[last] = value
    header = zlib.compress(json.dumps(document).encode())
    start = struct.pack("<8sQ32s", container.MAGIC, len(header), hashlib.sha256(header).digest())
    return start + header + content[48 + length :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pictures.0.0": "../escaped.png"}, "no name of a picture"),
        ({"pictures.0.0": "/etc/escaped.png"}, "no name of a picture"),
        ({"pictures.0.0": "a\u001b[31m.png"}, "impossible value"),
        ({"pictures.0.3": 10**9}, "larger than a picture may be"),
        ({"pictures.0": 5}, "its header is not as it was written"),
        ({"pictures.0": []}, "its header is not as it was written"),
        ({"pictures.1.0": "colour.jpg", "pictures.0.0": "colour.png"}, "hold a name twice"),
        ({"pictures.0.3": -4}, "must be at least 1"),
        ({"pictures.0.1": 7}, "of no model"),
        ({"levels": 10**9}, "must be at most"),
        ({"levels": "many"}, "must be of type int"),
        ({"segments.0.1": 10**15}, "holds more than it may"),
        ({"segments.0": [6, 0]}, "its header is not as it was written"),
        ({"segments.0.2": [1000]}, "holds more than it may"),
        ({"segments.0.2": [1, 1]}, "images are not written"),
        ({"models.0.name": "/dev/zero", "models.0.sha256": "0" * 64}, "name it with --model"),
        ({"raw": [[0, 0], [0, 0]]}, "names a tile twice"),
        ({"segments.0.0": 1}, "not of all pictures"),
        ({"models.0.side": [10**6, 10**6]}, "images that there are none of"),
        ({"models.0.side": [16, 16]}, "a model of other images than it says"),
        ({"models.0.channels": 2}, "images that there are none of"),
        ({"models.0.t0": 0.0}, "no such noise levels"),
        ({"models.0.t1": 1e300}, "no such noise levels"),
        ({"models.0.sha256": "0" * 64}, "name it with --model"),
        ({"models.0.self_test": "0" * 32}, "rounds photographs"),
        ({"raw": [[0, 0]]}, "its checksum differs"),
        ({"raw": [[99, 0]]}, "of no picture"),
        ({"raw": [[0, 99]]}, "of no picture"),
        ({"pictures.1.0": "colour.png/x.png", "pictures.0.0": "colour.bmp"}, "hold a name twice"),
        ({"models.0.sha256": "1" * 64, "models.1.sha256": "1" * 64}, "more than that of colour"),
        ({"models.0.t1": 1e3}, "no such noise levels"),
    ],
)
def test_a_header_that_was_made_up_does_no_harm(
    change: dict[str, Any], said: str, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made-up.dual"
    file.write_bytes(rewritten((coded / "images.dual").read_bytes(), change))
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("escaped*"))


def test_a_header_that_unfolds_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = zlib.compress(b" " * 10**7)
    most = len(header) * container._MOST_DEFLATED + 2**20
    assert most < 10**7
    monkeypatch.setattr(container, "_MOST_HEADER", 10**8)
    start = struct.pack("<8sQ32s", container.MAGIC, len(header), hashlib.sha256(header).digest())
    (tmp_path / "a.dual").write_bytes(start + header)
    with pytest.raises(CodingError, match="larger than it may be"):
        container.unpack(tmp_path / "a.dual")


def test_raw_tiles_unfold_no_further_than_they_are_long(coded: Path) -> None:
    contents = container.unpack(coded / "images.dual")[0]
    contents.raw.append((0, 0))
    tiles = container.tiles_in(contents, 0)
    found = RawTiles(contents, zlib.compress(bytes(10**7))).of(tiles)
    assert [len(content) for content in found.values()] == [3 * tiles[0].height * tiles[0].width]


@pytest.fixture
def three_stacks(coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of three gray pictures, each in a stack of its own."""
    from dualscore.compression import encoder

    monkeypatch.setattr(encoder, "VALUES_A_SEGMENT", 100)
    file = tmp_path / "a.dual"
    assert main(["compress", GRAY, str(coded / "in/gray.png"), str(coded / "in/line.png"),
                 str(coded / "in/deep/equal.png"), "--out", str(file), *LEVELS]) == 0  # fmt: skip
    return file


def test_damage_to_one_stack_harms_no_picture_of_another(
    three_stacks: Path, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = three_stacks
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 1
    assert "1 of 3 images are not written; the first, equal.png the bits" in " ".join(
        capsys.readouterr().err.split()
    )
    assert np.array_equal(pixels(coded / "in/gray.png"), pixels(tmp_path / "back/gray.png"))
    assert not (tmp_path / "back/equal.png").exists()


def test_a_model_that_moved_is_named_by_its_checksum(
    trained_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(16, 16).save(tmp_path / "a.png")
    shutil.copytree(trained_demo / "runs/patches_dual", tmp_path / "run")
    file = tmp_path / "a.dual"
    assert (
        main(["compress", str(tmp_path / "run"), str(tmp_path / "a.png"), "--out", str(file), *LEVELS]) == 0
    )
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 1
    assert re.search(
        r"SHA-256 [0-9a-f]{64}; it is not there: name it with --model",
        " ".join(capsys.readouterr().err.split()),
    )
    arguments = ["decompress", str(file), "--out", str(tmp_path / "back"), "--model", str(tmp_path / "moved")]
    assert main(arguments) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "back/a.png"))


def test_a_link_in_the_folder_leads_nowhere(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back/deep").symlink_to(tmp_path / "outside")
    assert main(["decompress", str(coded / "images.dual"), "--out", str(tmp_path / "back")]) == 1
    assert "3 of 6 images are not written" in (said := " ".join(capsys.readouterr().err.split()))
    assert "lies elsewhere, by a link" in said
    assert not list((tmp_path / "outside").iterdir())
    assert (tmp_path / "back/gray.png").exists()


def test_no_folder_is_made_beyond_a_link(tmp_path: Path) -> None:
    (tmp_path / "in/a/b").mkdir(parents=True)
    picture(9, 9).save(tmp_path / "in/a/b/c.png")
    file = str(tmp_path / "a.dual")
    assert main(["compress", GRAY, str(tmp_path / "in"), "--out", file, *LEVELS]) == 0
    (tmp_path / "outside").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back/a").symlink_to(tmp_path / "outside")
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 1
    assert not list((tmp_path / "outside").iterdir())


def test_bits_that_no_encoder_wrote_harm_no_picture_of_another_stack(
    three_stacks: Path, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a right checksum of them: decoding meets what it cannot read, or other pixels."""
    file = three_stacks
    contents, stacks, raw = container.unpack(file)
    assert all(words is not None for words in stacks)
    whole = [words for words in stacks if words is not None]
    whole[1] = np.random.default_rng(0).integers(1, 2**32, len(whole[1]), dtype=np.uint32)
    file.write_bytes(container.pack(contents, whole, zlib.decompress(raw) if raw else b"")[0])
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 1
    assert "1 of 3 images are not written; the first, line.png" in " ".join(capsys.readouterr().err.split())
    for name in ("gray.png", "deep/equal.png"):
        assert np.array_equal(
            pixels(coded / "in" / name),
            pixels(tmp_path / "back" / Path(name).name).reshape(pixels(coded / "in" / name).shape),
        )


def test_raw_tiles_of_every_stack_come_back(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie behind one another, and are inflated one stack's at a time."""
    from dualscore.compression import encoder

    monkeypatch.setattr(encoder, "VALUES_A_SEGMENT", 100)
    push, count = BitsBack.push, iter(range(1000))

    def failing(self: BitsBack, stack: Stack, images: torch.Tensor) -> object:
        if next(count) % 2 == 0:
            raise OutOfRangeError([0])
        return push(self, stack, images)

    monkeypatch.setattr(BitsBack, "push", failing)
    file = tmp_path / "a.dual"
    assert main(["compress", str(coded / "in"), "--out", str(file), *LEVELS]) == 0
    monkeypatch.setattr(BitsBack, "push", push)
    contents = container.unpack(file)[0]
    assert len(contents.segments) > 2
    assert len({image for image, _ in contents.raw}) > 2
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 0


def test_sixteen_bits_a_colour_are_not_cut_to_eight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, body = b"P6 4 3 65535\n", np.arange(36, dtype=">u2").tobytes()
    (tmp_path / "deep.ppm").write_bytes(header + body)
    imagecodecs = pytest.importorskip("imagecodecs")
    values = np.arange(48, dtype=np.uint16).reshape(4, 4, 3)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(values))
    picture(5, 5, 3).save(tmp_path / "a.tga")  # of which Pillow would not tell
    for name, why in (("deep.ppm", "16 bits"), ("deep.png", "16 bits"), ("a.tga", "is TGA")):
        assert main(["compress", str(tmp_path / name), "--out", str(tmp_path / "a.dual"), *LEVELS]) == 1
        assert why in " ".join(capsys.readouterr().err.split())


def test_names_that_no_disk_takes_are_cut_short(tmp_path: Path) -> None:
    long = "x" * 251 + ".im"
    (tmp_path / "in").mkdir()
    picture(5, 5).save(tmp_path / "in/a.png")
    (tmp_path / "in/a.png").rename(tmp_path / "in" / long)
    file = str(tmp_path / "a.dual")
    assert main(["compress", GRAY, str(tmp_path / "in" / long), "--out", file, *LEVELS]) == 0
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 0
    assert len(list((tmp_path / "back").iterdir())) == 1


def test_names_that_would_come_out_alike_are_told_apart(tmp_path: Path) -> None:
    for place, seed in (("x/a.png", 0), ("y/a.png", 1), ("y/a.bmp", 2)):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        picture(9, 9, seed=seed).save(tmp_path / place)
    file = str(tmp_path / "a.dual")
    assert main(["compress", GRAY, str(tmp_path / "x"), str(tmp_path / "y"), "--out", file, *LEVELS]) == 0
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["a-2.png", "a-3.png", "a.png"]


def test_a_folder_named_like_a_picture_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "in/a.png").mkdir(parents=True)
    picture(9, 9, seed=1).save(tmp_path / "in/a.bmp")
    picture(9, 9, seed=2).save(tmp_path / "in/a.png/b.png")
    file = str(tmp_path / "a.dual")
    assert main(["compress", GRAY, str(tmp_path / "in"), "--out", file, *LEVELS]) == 0
    assert main(["decompress", file, "--out", str(tmp_path / "back")]) == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["a.png", "b.png"]


def test_no_picture_of_ones_own_is_replaced(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "back", str(coded / "images.dual")
    out.mkdir()
    picture(5, 5).save(out / "gray.png")
    mine = (out / "gray.png").read_bytes()
    assert main(["decompress", file, "--out", str(out)]) == 1
    assert "gray.png is there, and is something else" in " ".join(capsys.readouterr().err.split())
    assert (out / "gray.png").read_bytes() == mine
    (out / "gray.png").unlink()
    assert main(["decompress", file, "--out", str(out)]) == 0  # those that are the same may be there
    assert main(["decompress", file, "--out", str(out), "--model", GRAY]) == 0


def test_a_model_that_it_was_not_coded_with_is_told(
    trained_demo: Path, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(trained_demo / "runs/patches_dual")
    assert main(["decompress", str(coded / "images.dual"), "--out", str(tmp_path), "--model", other]) == 1
    assert "was coded with none such" in " ".join(capsys.readouterr().err.split())


def test_a_report_replaces_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(9, 9).save(tmp_path / "a.png")
    (tmp_path / "a.dual.json").write_text('{"mine": 1}')
    assert main(["compress", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.dual"), *LEVELS]) == 1
    assert "its report would replace" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a.dual").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.png"], "no such file"),
        (["{folder}"], "holds no image"),
        (["{picture}", "--out", "{folder}"], "is a folder; name a file"),
        (["{picture}", "--out", "{folder}/no/file"], "there is no folder"),
        (["{picture}", "--out", "{picture}"], "name another"),
        (["{picture}", "--out", "{folder}/" + 220 * "x"], "cannot be written"),
        (["{picture}", "--levels", "0"], "must be 1 or more"),
    ],
)
def test_what_cannot_be_compressed_is_told(
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    picture(9, 9).save(tmp_path / "a.png")
    given_words = [w.format(folder=tmp_path / "empty", picture=tmp_path / "a.png") for w in words]
    try:
        status = main(["compress", *given_words])
    except SystemExit as stopped:
        status = int(str(stopped.code))
    assert status in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())


def test_other_files_are_not_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.dual").write_bytes(b"")
    assert main(["decompress", str(tmp_path / "a.dual"), "--out", str(tmp_path / "b")]) == 1
    assert main(["decompress", str(tmp_path / "none"), "--out", str(tmp_path / "b")]) == 1
    (tmp_path / "old.dual").write_bytes(b"DUALSCR1" + bytes(100))
    assert main(["decompress", str(tmp_path / "old.dual"), "--out", str(tmp_path / "b")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "is no file of `dualscore compress`" in said
    assert "cannot be read: No such file" in said
    assert "written by another version" in said


@given(
    st.integers(1, 200), st.integers(1, 200), st.sampled_from([None, (16, 16), (8, 24)]), st.integers(1, 3)
)
def test_tiles_cover_a_picture_once(
    height: int, width: int, fixed: tuple[int, int] | None, channels: int
) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (channels, height, width), dtype=np.uint8)
    tiles, back = tiles_of(0, 0, (height, width), fixed), np.zeros_like(whole)
    covered = np.zeros((height, width), int)
    for tile in tiles:
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
        assert (tile.height, tile.width) == fixed or max(tile.height, tile.width) <= SIDE
        lay(back, tile, cut(whole, tile))
    assert np.array_equal(back, whole)
    assert covered.min() == covered.max() == 1


@pytest.mark.parametrize("kind", ["flat", "small first", "photographs"])
def test_a_stack_never_runs_dry(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one still gives back what went in, but draws nothing, and costs more."""
    from dualscore.coding import Stack

    (tmp_path / "in").mkdir()
    for number in range(12):
        if kind == "flat":
            Image.fromarray(np.full((16, 16), 10 * number, np.uint8)).save(tmp_path / f"in/{number:02}.png")
        else:
            side = 1 if kind == "small first" and not number else 16
            picture(side, side, seed=number).save(tmp_path / f"in/{number:02}.png")
    least, honest = [10**9], Stack.pop_normal

    def watched(self: Stack, *arguments: Any, **more: Any) -> Any:
        found = honest(self, *arguments, **more)
        least[0] = min(least[0], self.bits)
        return found

    monkeypatch.setattr(Stack, "pop_normal", watched)
    file = tmp_path / "a.dual"
    assert main(["compress", GRAY, str(tmp_path / "in"), "--out", str(file), "--levels", "8"]) == 0
    assert least[0] > 64
    report = json.loads(Path(f"{file}.json").read_text())
    assert report["raw_tiles"] == 0
    assert len(set(container.unpack(file)[0].segments[0].batches)) > (kind != "flat")


def test_a_checksum_sees_sizes_too() -> None:
    values = np.arange(12, dtype=np.uint8)
    assert checksum(values.reshape(1, 3, 4)) != checksum(values.reshape(1, 4, 3))


def test_codecs_stand_beside_it_where_asked_for(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "a.dual")
    assert main(["compress", GRAY, str(coded / "in/gray.png"), "--out", file, "--codecs", *LEVELS]) == 0
    found = json.loads(Path(f"{file}.json").read_text())["codecs"]
    Image.open(coded / "in/gray.png").save(tmp_path / "a.png", optimize=True)
    assert found["png"] == pytest.approx(8 * (tmp_path / "a.png").stat().st_size / (33 * 66), rel=0.1)
    assert "PNG" in capsys.readouterr().out


def test_nothing_is_written_where_no_image_could_be_coded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(CodingError, match="no image could be coded"):
        compress_images.compress(
            None,
            [tmp_path / "a.png"],
            tmp_path / "a.dual",
            quiet_console(),
            compress_images.CompressOptions(4),
        )
    assert not (tmp_path / "a.dual").exists()


def quiet_console() -> Any:
    from rich.console import Console

    return Console(quiet=True)
