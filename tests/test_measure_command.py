"""`dualscore measure`, whole: models of every kind on files, folders, tars and prepared data sets."""

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from dualscore.data.known import draw_images
from dualscore.densities import gaussian_textures
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood import dequantized_bits_per_dim
from workspace import Workspace

DENSITY = gaussian_textures((1, 16, 16))
IMAGES = draw_images(DENSITY, 24, True, torch.Generator().manual_seed(0))
QUICK = ["--strata", "4", "--workers", "0"]
OWN = """
from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from dualscore.denoisers import of_edm, of_pixels
from dualscore.densities import gaussian_textures
from beside import VARIANCE


@dataclass
class Kept:
    width: int = 3


print("it runs")
textures = gaussian_textures((1, 16, 16))
calls = 0


def edm(noisy, sigma):
    global calls
    calls += 1
    if calls == int(os.environ.get("STOP_AT", "-1")):
        raise KeyboardInterrupt
    noisy = noisy.mean(dim=1, keepdim=True)
    t = sigma.square() / 4.0
    pixels = (noisy + 1.0) / 2.0
    gradient = textures.gradients(pixels, t + VARIANCE, time=False).image
    return 2.0 * (pixels - t[:, None, None, None] * gradient) - 1.0


best = of_edm(edm, deviations=(0.002, 80.0))
best.image_shape = (1, 16, 16)


def made(device):
    assert device == "cpu"
    return best


def nothing():
    return 3


def two(y, t):
    return y


def raises():
    return 1 / 0


def leaves():
    raise SystemExit(0)


def fails(y, t):
    return {}["key"]


def first_level(y, t):
    return best.denoise(y, t[:1].expand(len(y)))


def gray(function):
    found = of_pixels(function, t_range=(1e-6, 1e3))
    found.image_shape = (1, 16, 16)
    return found


failing, one_level, black = gray(fails), gray(first_level), gray(lambda y, t: 0 * y)
none, network, builtin = None, torch.nn.Identity(), max
shapeless = of_pixels(lambda y, t: y, t_range=(1e-6, 1e3))
wrong_shape = gray(two)
wrong_shape.image_shape = (16, 16)
"""


@pytest.fixture
def place(workspace: Workspace) -> Workspace:
    """The working folder with own.py, an album of single images, one of crops of photographs, and a tar."""
    folder = workspace.folder
    (folder / "own.py").write_text(OWN)
    (folder / "beside.py").write_text(f"VARIANCE = {QUANTIZATION_VARIANCE!r}\n")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, image in enumerate(IMAGES.expand(-1, 3, -1, -1)):
            picture, content = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
            for below in (f"album/{number:02}.png", f"crops/{number // 4}/{number:02}.png"):
                (folder / below).parent.mkdir(parents=True, exist_ok=True)
                picture.save(folder / below)
            picture.save(content, "PNG")
            for name, data in ((f"{number:02}.png", content.getvalue()), (f"{number:02}.cls", b"3")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return workspace


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes folders of small untrained pipelines."""

    def make(**settings: Any) -> str:
        torch.manual_seed(0)
        small = {
            "sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
            "norm_num_groups": 4, "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
        } | settings  # fmt: skip
        folder = tmp_path_factory.mktemp("pipeline")
        scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
        diffusers.DDPMPipeline(diffusers.UNet2DModel(**small), scheduler).save_pretrained(folder)
        return str(folder)

    return make


def report(place: Workspace, out: str = "measured") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.folder / out / "report.json").read_text())
    return found


def rows(place: Workspace, out: str = "measured") -> list[dict[str, str]]:
    with (place.folder / out / "rows.csv").open() as file:
        return list(csv.DictReader(file))


def test_your_own_code_is_said_to_run_and_its_bound_is_near_the_truth(place: Workspace) -> None:
    printed = place.run("measure", "own.py:best", "album", *QUICK)
    assert "runs your own code: own.py:best" in printed
    assert "24 images; ± is over 24 photographs (each image its own)" in printed
    (model,) = report(place)["models"]
    t = torch.full((24,), QUANTIZATION_VARIANCE)
    truth = dequantized_bits_per_dim(DENSITY(IMAGES.float() / 255.0, t).double(), 256).mean()
    bound = model["bits_per_dim"]["bound"]
    assert float(truth) - 3 * bound["stderr"] < bound["value"] < float(truth) + 0.1
    assert not model["verdict"].startswith("INCONSISTENT")
    by_image = [float(row["own.py:best"]) for row in rows(place)]
    assert np.mean(by_image) == pytest.approx(bound["value"], abs=1e-5)
    assert [row["file"] for row in rows(place)] == [f"album/{n:02}.png" for n in range(24)]
    assert not [*place.folder.glob("measured/.pixels*")]


def test_the_same_images_have_the_same_bound_however_they_lie_there(place: Workspace) -> None:
    found = {}
    for given in ("album", "shard.tar", "crops"):
        place.run("measure", "own.py:made", given, *QUICK, "--out", f"of_{given}")
        found[given] = report(place, f"of_{given}")
    values = {given: r["models"][0]["bits_per_dim"]["bound"] for given, r in found.items()}
    assert len({value["value"] for value in values.values()}) == 1
    assert values["crops"]["photographs"] == 6
    assert values["album"]["photographs"] == values["shard.tar"]["photographs"] == 24
    assert rows(place, "of_shard.tar")[3]["file"] == "shard.tar/03.png"
    assert len({r["pixels_sha256"] for r in found.values()}) == 1


def test_models_are_compared_on_the_same_images_and_noise(
    place: Workspace, pipeline: Callable[..., str], trained_demo: Path, demo_shards: Path
) -> None:
    folder, run = pipeline(), str(trained_demo / "runs/patches_dual")
    printed = place.run(
        "measure", run, str(demo_shards), "--compare", folder, "own.py:best", "--count", "40", *QUICK
    )
    found = report(place)
    ours, theirs, own = found["models"]
    assert "UNet2DModel, DDPMScheduler" in theirs["what"]
    assert "40 images; ± is over 2 photographs of demo's test images" in printed
    assert ours["bits_per_dim"]["bound"]["photographs"] == 2
    assert "dequantized" in ours["bits_per_dim"]  # of an energy, its own
    assert "dequantized" not in theirs["bits_per_dim"]
    gap = next(g for g in found["differences"] if g["bound_of"] == "own.py:best")
    assert gap["value"] == pytest.approx(
        own["bits_per_dim"]["bound"]["value"] - ours["bits_per_dim"]["bound"]["value"]
    )
    assert set(rows(place)[0]) == {"file", "photograph", run, folder, "own.py:best"}


def test_the_bound_of_a_run_is_that_of_its_evaluation(
    place: Workspace, trained_demo: Path, demo_shards: Path
) -> None:
    """On the same images, the same Gaussian its prior; other noise, and t0 and t1 chosen otherwise."""
    place.run("measure", str(trained_demo / "runs/patches_dual"), str(demo_shards), "--count", "64", *QUICK)
    (model,) = report(place)["models"]
    evaluated = json.loads((trained_demo / "runs/patches_dual/evaluation.json").read_text())["bits_per_dim"]
    for name in ("bound", "dequantized"):
        error = 3 * model["bits_per_dim"][name]["stderr"]
        assert model["bits_per_dim"][name]["value"] == pytest.approx(evaluated[name]["value"], abs=error)


def test_what_was_interrupted_goes_on(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualscore.cli import main

    whole = place.run("measure", "own.py:made", "album", *QUICK, "--out", "whole", "--batch-size", "8")
    monkeypatch.setenv("STOP_AT", "200")
    words = ["measure", "own.py:made", "album", *QUICK, "--out", "measured", "--batch-size", "8"]
    assert main(words) == 130
    assert not (place.folder / "measured/report.json").exists()
    kept = {p: p.read_bytes() for p in place.folder.glob("measured/rows/*/*/*.npz")}
    assert kept
    monkeypatch.delenv("STOP_AT")
    assert place.run(*words).replace("measured", "whole").endswith(whole.split("\n", 1)[1])
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert report(place)["models"] == report(place, "whole")["models"]
    # Of another model of that name, or of other images, nothing is taken.
    (place.folder / "own.py").write_text(OWN.replace("from beside import VARIANCE", "VARIANCE = 1e-3"))
    place.run(*words)
    assert report(place)["models"][0]["bits_per_dim"] != report(place, "whole")["models"][0]["bits_per_dim"]
    (place.folder / "album/00.png").unlink()
    place.run(*words)
    assert report(place)["images"] == 23


def test_a_class_is_asked_for_and_told(place: Workspace, pipeline: Callable[..., str]) -> None:
    folder = pipeline(num_class_embeds=4)
    line = place.fail("measure", folder, "album", *QUICK)
    assert "is told a class, one of 4: say which with --label" in line
    values = set()
    for label in ("0", "3"):
        place.run("measure", folder, "album", *QUICK, "--label", label)
        values.add(report(place)["models"][0]["bits_per_dim"]["bound"]["value"])
    assert len(values) == 2
    assert "there are 4 classes" in place.fail("measure", folder, "album", "--label", "4")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["own.py:nothing", "album"], "is or gave a int; wanted is a denoiser"),
        (["own.py:two", "album"], r"takes 2 arguments: wanted is a denoiser, as of_pixels\(function"),
        (["own.py:builtin", "album"], "takes 2 arguments"),
        (["own.py:network", "album"], "is or gave a Identity"),
        (["own.py:none", "album"], "is or gave a NoneType"),
        (["own.py:wrong_shape", "album"], r"image_shape=\(16, 16\)"),
        (["own.py:raises", "album"], r"own.py, line \d+: ZeroDivisionError: division by zero"),
        (["own.py:leaves", "album"], "SystemExit: 0"),
        (["own.py:failing", "album"], r"own.py:failing.*line \d+: KeyError: 'key'"),
        (["own.py:one_level", "album"], r"must take a noise level for each image"),
        (["own.py:bets", "album"], "has no 'bets'; did you mean best?"),
        (["other.py:best", "album"], "other.py: no such file"),
        (["own.py:best", "nowhere"], "nowhere: no such file"),
        (["own.py:best", "album", "--label", "1"], "--label is for models of diffusers"),
        (["own.py:best", "album/00.png"], "1 image can be measured, but .* two: there is no other"),
        (["own.py:best", "album", "--count", "1"], "--count must be 2 or more"),
        (["own.py:best", "album", "--ode-images", "1"], "--ode-images must be 2 or more"),
        (["own.py:best", "wide.png", "wide.png"], "is 20×16, but wanted are 16×16"),
        (["own.py:best", "cut.tar"], "cut.tar: cannot be read as a tar"),
        (["own.py:best", "empty.tar"], "empty.tar holds no image"),
        (["own.py:shapeless", "empty.tar"], "empty.tar: holds no image"),
        (["own.py:shapeless", "album", "--compare", "own.py:best"], "own.py:shapeless is of 3 channels"),
        (["album", "album"], "album/checkpoints|album: .*no"),
        (["own.py:best", "album", "--device", "cuda:9"], "--device cuda:9"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(words: list[str], said: str, place: Workspace) -> None:
    Image.new("RGB", (20, 16)).save(place.folder / "wide.png")
    (place.folder / "cut.tar").write_bytes((place.folder / "shard.tar").read_bytes()[:3000])
    tarfile.open(place.folder / "empty.tar", "w").close()
    assert re.search(said, place.fail("measure", *words, *QUICK))


def test_a_constant_answer_has_figures(place: Workspace) -> None:
    (place.folder / "dark").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16)).save(place.folder / f"dark/{number}.png")
    place.run("measure", "own.py:black", "dark", *QUICK)
    assert report(place)["models"][0]["bits_per_dim"]["bound"]["value"] < 0.1


def test_copies_of_own_code_have_their_own_helpers(place: Workspace) -> None:
    """Files of one name beside two files of one name."""
    for name, more in (("a", ""), ("b", "VARIANCE = 0.1\n")):
        (place.folder / name).mkdir()
        for file in ("own.py", "beside.py"):
            text = (place.folder / file).read_text()
            (place.folder / name / file).write_text(text + (more if file == "beside.py" else ""))
    place.run("measure", "a/own.py:best", "album", "--compare", "b/own.py:best", *QUICK)
    place.run("measure", "b/own.py:best", "album", *QUICK, "--out", "alone")
    both, (alone,) = report(place)["models"], report(place, "alone")["models"]
    assert both[1]["bits_per_dim"] == alone["bits_per_dim"] != both[0]["bits_per_dim"]


def test_the_same_archive_counts_once(place: Workspace) -> None:
    place.run("measure", "own.py:best", "shard.tar", "./shard.tar", *QUICK)
    assert report(place)["images"] == 24


def test_a_label_goes_to_the_models_that_take_one(place: Workspace, pipeline: Callable[..., str]) -> None:
    place.run(
        "measure", pipeline(num_class_embeds=4), "album", "--compare", "own.py:best", pipeline(), *QUICK,
        "--label", "2",
    )  # fmt: skip
    assert len(report(place)["models"]) == 3


def test_a_picture_that_unpacks_to_too_much_does_not_say_the_size(place: Workspace) -> None:
    Image.new("1", (2**13, 2**13 + 1)).save(place.folder / "bomb.png")
    with tarfile.open(place.folder / "bomb.tar", "w") as tar:
        tar.add(place.folder / "bomb.png", "bomb.png")
    assert "bomb.tar: holds no image" in place.fail("measure", "own.py:shapeless", "bomb.tar", *QUICK)


def test_sizes_that_differ_are_not_compared(place: Workspace, pipeline: Callable[..., str]) -> None:
    line = place.fail("measure", "own.py:best", "album", "--compare", pipeline(sample_size=8), *QUICK)
    assert "own.py:best is of 16×16, " in line
    assert "is of 8×8" in line


def test_a_dry_run_runs_no_code(place: Workspace) -> None:
    printed = place.run("measure", "own.py:best", "album", "--dry-run")
    assert "your own code, not run by a dry run" in printed
    assert "it runs" not in printed
    assert not (place.folder / "measured").exists()


def test_images_are_asked_for_a_batch_at_a_time() -> None:
    """So that memory holds a batch, however many there are."""
    import dualscore
    from dualscore.denoisers import of_pixels

    class Stored:
        shape = (40, 1, 16, 16)
        most = 0

        def __getitem__(self, places: torch.Tensor) -> torch.Tensor:
            self.most = max(self.most, len(places))
            return IMAGES[places % 24]

    stored = Stored()
    denoiser = of_pixels(lambda y, t: DENSITY.denoise(y, t), t_range=(1e-6, 1e3))
    dualscore.measure(denoiser, stored, batch_size=10, strata=2, checked=12)
    assert stored.most == 10
