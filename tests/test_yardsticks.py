"""What stands beside every evaluation: the same images, the right figures, fitted once, never in the way."""

import io
import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from dualscore.assemble import build_datamodule, load_statistics
from dualscore.data.datamodule import ImageDataModule
from dualscore.errors import DataError
from dualscore.evaluation import codecs, fitted_yardsticks, yardsticks
from dualscore.evaluation.fitted_yardsticks import FullGaussian, kept
from dualscore.evaluation.yardsticks import YARDSTICKS, Yardstick, measure_yardsticks
from dualscore.gaussian import StationaryGaussian
from dualscore.images import dequantize, to_pixels
from dualscore.noise import fixed_uniform
from dualscore.settings.experiment import load_experiment
from workspace import ROOT


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_yardsticks, "STEPS", 3)
    monkeypatch.setattr(yardsticks, "STEPS", 3)
    monkeypatch.setattr(fitted_yardsticks, "FEWEST_IMAGES", 1500)
    monkeypatch.setattr(fitted_yardsticks, "IMAGES_PER_DIMENSION", 1)


@pytest.fixture
def shards(demo_shards: Path, tmp_path: Path) -> Path:
    """The demo's shards in a folder of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in demo_shards.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


def opened(experiment: str, *settings: str) -> tuple[ImageDataModule, StationaryGaussian]:
    config = load_experiment(experiment, list(settings), ROOT / "experiments")
    statistics = load_statistics(config)
    return build_datamodule(config), StationaryGaussian(statistics.mean, statistics.spectrum).double()


def measured(
    datamodule: ImageDataModule, stationary: StationaryGaussian, folder: Path, **options: object
) -> dict[str, Yardstick]:
    settings = {"split": "val", "count": 40, "seed": 3} | options
    return measure_yardsticks(
        datamodule, stationary, folder=folder, console=Console(file=io.StringIO()), **settings
    )  # type: ignore[arg-type]


def test_every_row_is_of_the_same_images(shards: Path, tmp_path: Path) -> None:
    datamodule, stationary = opened("patches_dual", f"data.path={shards}")
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    rows = measured(datamodule, stationary, tmp_path / "evaluation")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert list(rows) == list(YARDSTICKS)
    (batch,) = datamodule.evenly_spaced("val", 40, 512)
    for name in ("stationary", "full_covariance", "causal"):
        row = rows[name]
        assert torch.equal(row.found.position, batch.position)
        assert row.value == pytest.approx(float(row.found.bits.mean()))
        assert row.images == 40
    assert [rows[name].kind for name in YARDSTICKS[:4]] == ["dequantized", "dequantized", "exact", "file"]
    assert [rows[name].training_images for name in YARDSTICKS[:4]] == [27663, 1500, 27663, 27663]
    assert "44," in rows["causal"].note

    # By hand, from the definition.
    x = to_pixels(batch.image, 1, torch.float64)
    x = dequantize(x, fixed_uniform(batch.position.tolist(), (1, 16, 16), 3).double())
    full = FullGaussian(256)
    for part in datamodule.evenly_spaced("train", 1500, 100):
        full.add(to_pixels(part.image, 1))
    full.fit()
    by_hand = math.log2(255) + full.energy(x) / (256 * math.log(2))
    assert torch.allclose(rows["full_covariance"].found.bits, by_hand)
    energy = stationary(x, torch.zeros(40, dtype=x.dtype)).energy
    assert torch.allclose(rows["stationary"].found.bits, math.log2(255) + energy / (256 * math.log(2)))
    gray = (x * 255).round().to(torch.uint8)
    tiles = codecs.mosaic(gray.numpy())
    assert rows["png"].value == pytest.approx(8 * len(codecs.png(tiles)) / (40 * 256))
    assert not (tmp_path / "evaluation").exists()  # all lies beside the data


def test_what_is_fitted_is_taken_from_its_file_until_something_else_is_asked_for(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datamodule, stationary = opened("patches_dual", f"data.path={shards}")
    names = ("full_covariance", "causal")
    first = measured(datamodule, stationary, tmp_path, wanted=names)
    files = sorted((shards / ".yardsticks").iterdir())
    assert [path.name.rpartition("-")[0] for path in files] == ["causal", "full-covariance"]

    def none(*_: object, **__: object) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(fitted_yardsticks, "train_causal", none)
        patch.setattr(FullGaussian, "fit", none)
        again = measured(datamodule, stationary, tmp_path, wanted=names)
        for name in names:
            assert torch.equal(first[name].found.bits, again[name].found.bits)
            assert first[name].training_images == again[name].training_images
        patch.setattr(datamodule, "identity", "other images")
        with pytest.raises(AssertionError, match="again"):
            measured(datamodule, stationary, tmp_path, wanted=["causal"])

    for harm in (damage, disguise, empty):
        for path in files:
            harm(path)
        repaired = measured(datamodule, stationary, tmp_path, wanted=names)
        assert all(torch.equal(first[name].found.bits, repaired[name].found.bits) for name in names)
        assert sorted((shards / ".yardsticks").iterdir()) == files


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def disguise(path: Path) -> None:
    """A file of another identity under this one's name."""
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"dualscore": "{}"})


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_without_a_folder_to_write_to_it_is_kept_with_the_evaluation(shards: Path, tmp_path: Path) -> None:
    datamodule, stationary = opened("patches_dual", f"data.path={shards}")
    (shards / ".yardsticks").write_text("a file where the folder should be: as a data folder of others")
    elsewhere, nowhere = tmp_path / "evaluation", tmp_path / "file"
    rows = measured(datamodule, stationary, elsewhere, wanted=["causal"])
    assert [path.suffix for path in elsewhere.iterdir()] == [".safetensors"]
    nowhere.write_text("")
    unkept = measured(datamodule, stationary, nowhere, wanted=["causal"])
    assert torch.equal(rows["causal"].found.bits, unkept["causal"].found.bits)


def made(folder: Path, number: int) -> None:
    for _ in range(30):
        if number % 2:
            for path in folder.glob("thing-*"):
                path.unlink(missing_ok=True)
        found = kept([folder], "thing", {"of": 1}, lambda: {"x": torch.arange(5000.0)})
        assert torch.equal(found["x"], torch.arange(5000.0))


def test_processes_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=made, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_many_images_are_an_even_choice_for_network_and_codecs(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardsticks, "CAUSAL_VALUES", 10 * 256)
    monkeypatch.setattr(yardsticks, "CODEC_PIXELS", 6 * 256)
    datamodule, stationary = opened("patches_dual", f"data.path={shards}")
    rows = measured(datamodule, stationary, tmp_path, count=300)
    whole = set(rows["stationary"].found.position.tolist())
    part = rows["causal"].found.position.tolist()
    assert (rows["stationary"].images, rows["causal"].images, rows["png"].images) == (300, 10, 6)
    assert set(part) < whole
    assert max(np.diff([0, *part, 2018])) < 2 * 2018 / 10
    assert rows["png"].note.startswith("a mosaic of 6 images, 32×48 pixels")


def test_images_that_are_floats_have_no_levels(tmp_path: Path) -> None:
    datamodule, stationary = opened("gaussian_textures_float")
    rows = measured(datamodule, stationary, tmp_path)
    assert rows["stationary"].kind == "density"
    assert 0 < rows["stationary"].images == rows["full_covariance"].images == 40
    for name in ("causal", *codecs.CODECS):
        assert (rows[name].value, rows[name].images) == (None, 0)
        assert rows[name].note == "of 8-bit images only, and these are floats"
    assert [path.name[:4] for path in tmp_path.iterdir()] == ["full"]


def test_training_images_that_cannot_be_read_cost_their_rows_alone(shards: Path, tmp_path: Path) -> None:
    datamodule, stationary = opened("patches_dual", f"data.path={shards}")
    target = shards / "train-000003.tar"
    content = bytearray(target.read_bytes())
    content[20 * 1280 : 21 * 1280] = bytes(1280)
    target.unlink()
    target.write_bytes(content)
    rows = measured(datamodule, stationary, tmp_path, wanted=["stationary", "causal"])
    assert "train-000003.tar" in rows["causal"].note
    assert rows["stationary"].value is not None


def test_colour_is_measured_in_colour(shards: Path, tmp_path: Path) -> None:
    datamodule, stationary = opened("patches_dual", f"data.path={shards}", "data.channels=3")
    rows = measured(datamodule, stationary, tmp_path, wanted=["stationary", "causal", "png"])
    (batch,) = datamodule.evenly_spaced("val", 40, 512)
    assert rows["png"].value == pytest.approx(
        8 * len(codecs.png(codecs.mosaic(batch.image.numpy()))) / (40 * 768)
    )
    assert rows["causal"].found.bits.shape == (40,)


@pytest.fixture
def tiles() -> np.ndarray:
    """Seven smooth RGB images of 5×9 pixels."""
    ramp = np.add.outer(np.arange(5), np.arange(9)) * 10
    return np.stack([[ramp + 3 * n, ramp * 2, 255 - ramp] for n in range(7)]).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_mosaic_and_the_mosaic_every_image(tiles: np.ndarray, channels: int) -> None:
    images = tiles[:, :channels]
    picture = codecs.mosaic(images)
    assert picture.shape[:2] == (4 * 5, 2 * 9)
    for number, image in enumerate(images):
        row, column = divmod(number, 2)
        cut = picture[row * 5 : row * 5 + 5, column * 9 : column * 9 + 9]
        assert np.array_equal(cut, image[0] if channels == 1 else image.transpose(1, 2, 0))
    for encode in (codecs.png, codecs.webp):
        decoded = Image.open(io.BytesIO(encode(picture)))
        assert np.array_equal(np.asarray(decoded.convert("L" if channels == 1 else "RGB")), picture)
    imagecodecs = pytest.importorskip("imagecodecs", reason="JPEG XL is an extra")
    assert np.array_equal(imagecodecs.jpegxl_decode(codecs.jpeg_xl(picture)), picture)


def test_a_codec_that_is_not_there_says_how_to_get_it(
    tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    row = yardsticks._codec("jpeg_xl", torch.from_numpy(tiles))
    assert row.note == 'not installed: pip install "dualscore[codecs]"'


def test_a_mosaic_too_large_for_a_codec_is_refused() -> None:
    with pytest.raises(DataError, match="at most 16,383"):
        codecs.mosaic(np.zeros((1, 1, 2, 16_384), np.uint8))
    with pytest.raises(DataError, match="4 channels"):
        codecs.mosaic(np.zeros((1, 4, 2, 2), np.uint8))


def test_a_kept_file_tells_what_it_is_of(tmp_path: Path) -> None:
    from safetensors import safe_open

    kept([tmp_path], "thing", {"of": 1}, lambda: {"x": torch.zeros(2)})
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["dualscore"])["identity"] == {"of": 1}
