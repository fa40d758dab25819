"""Images of another kind: whole runs against known densities, and whole commands."""

import csv
import importlib
import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

import dualscore
from dualscore.densities import natural_spectrum
from dualscore.energy import Energy
from dualscore.errors import NormalizationError, ScoreError
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.scoring import detect_ood
from dualscore.scoring.detect_ood import FEWEST
from dualscore.scoring.ood_scores import typicality
from test_scoring import picture, unet
from workspace import ROOT, TINY, Workspace, given_by_make

QUIET = Console(quiet=True)
SIDE = 8


def detect(
    checkpoint: Path,
    inside: list[Path],
    outside: list[Path],
    out: Path,
    console: Console = QUIET,
    **options: Any,
) -> dict[str, Any]:
    """The summary, after printing what the command would."""
    found = detect_ood.detect(checkpoint, inside, outside, out, console, **options)
    for part in found.report:
        console.print(part, soft_wrap=isinstance(part, str))
    return found.summary


# Whole runs with a known density.


def gaussian(side: int = SIDE) -> StationaryGaussian:
    return StationaryGaussian(torch.tensor([0.5]), 0.01 * natural_spectrum((1, side, side), 2.0, 0.1))


def exact_model(side: int = SIDE) -> ImageModel:
    """An energy model whose network says nothing: the Gaussian's own energy, log Z = 0."""
    energy = Energy(unet(output_gain=0.0), gaussian(side), [gaussian(side)])
    return ImageModel(energy, image_shape=(1, side, side), log_normalizer=0.0).eval()


def draw_folder(folder: Path, count: int, factors: Tensor, seed: int) -> Path:
    """Images of the Gaussian with its DCT variances multiplied by factors, shape (SIDE, SIDE)."""
    folder.mkdir(parents=True)
    known = gaussian()
    white = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    images = known.synthesize(white * (known.eigenvalues * factors).sqrt()) + 0.5
    for k, image in enumerate((255.0 * images[:, 0]).round().clamp(0, 255).to(torch.uint8)):
        Image.fromarray(image.numpy()).save(folder / f"{k:03d}.png")
    return folder


def one_factor(value: float) -> Tensor:
    return torch.full((SIDE, SIDE), value)


def smoother() -> Tensor:
    rows = torch.arange(SIDE)
    return torch.where(rows[:, None] + rows > SIDE // 2, 0.5, 1.0)


@pytest.fixture
def exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's name that stands for the known density."""
    monkeypatch.setattr(detect_ood, "load", lambda _: exact_model())
    (tmp_path / "model.ckpt").write_bytes(b"stands for a model")
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize("factors", [one_factor(0.7), smoother(), one_factor(1.5)])
def test_areas_of_a_known_density_are_the_analytic_ones(tmp_path: Path, exact: Path, factors: Tensor) -> None:
    """2U − const is χ²_d on its own images and Σ_k s_k χ²_1 on images of other variances s_k λ_k.

    Smoother or fainter images are more probable than the density's own: log p takes them for the most usual
    of all, which the other two scores do not.
    """
    inside = draw_folder(tmp_path / "in", 600, one_factor(1.0), seed=0)
    outside = draw_folder(tmp_path / "out", 300, factors, seed=1)
    found = detect(exact, [inside], [outside], tmp_path / "ood")["scores"]
    draw, d = np.random.default_rng(0), SIDE**2
    strange = draw.chisquare(1, (20_000, d)) @ factors.flatten().numpy().astype(float)
    known = stats.chi2.cdf(strange, d)  # an image's score is where it lies among the density's own
    truth = {"log_p": known.mean(), "typicality": np.abs(2 * known - 1).mean()}
    if len(set(factors.flatten().tolist())) == 1:
        assert truth["log_p"] == pytest.approx(stats.f.sf(1 / float(factors[0, 0]), d, d), abs=0.005)
    for name, value in truth.items():
        error = (found[name]["high"] - found[name]["low"]) / (2 * 1.96)
        assert 0.005 < error < 0.03
        assert found[name]["auroc"] == pytest.approx(value, abs=3.5 * error + 0.01)
    if float(factors.min()) < 1.0:
        assert found["log_p"]["high"] < 0.3
        assert found["typicality"]["low"] > 0.6
    assert found["profile"]["low"] > 0.6


def test_images_of_the_same_kind_cannot_be_told_apart(tmp_path: Path, exact: Path) -> None:
    inside = draw_folder(tmp_path / "in", 400, one_factor(1.0), seed=0)
    outside = draw_folder(tmp_path / "out", 200, one_factor(1.0), seed=1)
    found = detect(exact, [inside], [outside], tmp_path / "ood")["scores"]
    for scores in found.values():
        error = (scores["high"] - scores["low"]) / (2 * 1.96)
        assert scores["auroc"] == pytest.approx(0.5, abs=3.5 * error)


def test_intervals_are_over_sub_folders(tmp_path: Path, exact: Path) -> None:
    """Images that are alike in a sub-folder and differ between them, as crops of photographs do."""
    for number, factor in enumerate((0.2, 0.5, 1.0, 2.0, 5.0, 8.0)):
        draw_folder(tmp_path / "in" / f"p{number}", 20, one_factor(factor), seed=number)
        draw_folder(
            tmp_path / "out" / f"p{number}" / "deeper", 10, one_factor(1.5 * factor), seed=10 + number
        )
    known = [tmp_path / "in"], [tmp_path / "out"]
    parts = [sorted((tmp_path / side).iterdir()) for side in ("in", "out")]
    flat = [list((tmp_path / "out").rglob("*.png"))]
    printed = StringIO()
    console = Console(file=printed, width=200)
    out = tmp_path / "ood"
    together = detect(exact, *known, out, console, levels=(20.0,))
    assert together["photographs"] == {"reference": 6, "in": 6, "out": 6}
    counted = "6 photographs (sub-folders)"
    assert f"intervals are over {counted} of --in, {counted} of --out" in printed.getvalue()
    apart = detect(exact, parts[0], *flat, out, console, levels=(20.0,))
    assert apart["photographs"] == {"reference": 60, "in": 60, "out": 60}
    assert "60 photographs (each image its own) of --out" in printed.getvalue()
    wide, narrow = together["scores"]["log_p"], apart["scores"]["log_p"]
    assert wide["auroc"] == pytest.approx(narrow["auroc"])
    assert wide["high"] - wide["low"] > 2.0 * (narrow["high"] - narrow["low"])

    alone = tmp_path / "alone"
    draw_folder(alone / "photograph", 30, one_factor(0.5), seed=30)
    found = detect(exact, known[0], [alone], out, console, levels=(20.0,))
    assert found["photographs"]["out"] == 1
    assert all(scores["low"] is scores["high"] is None for scores in found["scores"].values())
    assert printed.getvalue().count("one photograph: no error") == 3
    assert f"no intervals: {counted} of --in, one photograph (sub-folder) of --out" in printed.getvalue()
    assert json.loads((out / "ood.json").read_text())["scores"]["log_p"]["low"] is None


def test_the_table_of_the_documentation_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exact: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ood_demo = importlib.import_module("ood_demo")
    monkeypatch.setattr(detect_ood, "load", lambda _: exact_model(16))
    assert ood_demo.main(["--model", str(exact), "--out", str(tmp_path / "demo"), "--most", "20"]) == 0
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [cells[0][2:] for cells in table[2:]] == [
        "brick", "grass", "gravel", "text", "page", "coins", "moon", "hubble_deep_field", "noise", "constant"
    ]  # fmt: skip
    assert table[-2][2].startswith("1.000")  # noise is the least probable of all
    found = rows(tmp_path / "demo")
    for number, name in ((3, "grass"), (5, "text")):
        mine = [row for row in found if row["side"] == "in" or f"/{name}/" in row["file"]]
        labels, bits = [row["side"] == "out" for row in mine], [float(row["bits_per_dim"]) for row in mine]
        assert sum(labels) == 20
        assert float(table[number][2][:5]) == pytest.approx(roc_auc_score(labels, bits), abs=6e-4)


def rows(results: Path) -> list[dict[str, str]]:
    with (results / "ood.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Whole commands.


def test_a_trained_model_tells_kinds_apart(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
    workspace.run("train", "patches_dual", *settings, f"data.path={demo_shards}", "data.workers=0")
    for name, count, contrast in (("in", 50, 30.0), ("strange", 25, 2.0)):
        Path(name).mkdir()
        for k in range(count):
            picture(k, 16, contrast).save(f"{name}/{k:02d}.png")
    Path("in/broken.png").write_bytes(b"no image")
    picture(0, 20).save("strange/other.png")
    picture(3, 16, 30.0).save("strange/known.png")
    arguments = ["runs/patches_dual", "--in", "in", "--out", "strange"]
    printed = workspace.run("ood", *arguments, "--results", "found", "--psnr", "30", "10", "10")
    assert "25 images of --in against 26 of --out; 25 others of --in are the reference; 2 left out" in printed
    assert "1 of --out are in --in too" in printed
    assert "left out: in/broken.png cannot be decoded" in printed
    results = workspace.folder / "found"
    content = json.loads((results / "ood.json").read_text())
    assert content["images"] == {"reference": 25, "in": 25, "out": 26}
    assert content["failed"] == {"in": 1, "out": 1}
    assert content["settings"]["psnr"] == [30, 10]
    assert content["model"].startswith("patches_dual, step 2")
    found = rows(results)
    sides = {side: [row for row in found if row["side"] == side] for side in ("reference", "in", "out")}
    assert [len(part) for part in sides.values()] == [25, 25, 26]
    assert set(found[0]) == {
        "file", "side", "bits_per_dim", "typicality", "profile", "d_eff_30dB", "d_eff_10dB"
    }  # fmt: skip

    model = dualscore.load("runs/patches_dual")
    stored = [np.asarray(Image.open(row["file"]).convert("L")) for row in found]
    pixels = torch.from_numpy(np.stack(stored))[:, None] / 255
    bits = [float(row["bits_per_dim"]) for row in found]
    assert bits == pytest.approx(model.bits_per_dim(pixels).tolist(), abs=1e-4)
    for column, name in (("bits_per_dim", "log_p"), ("typicality", "typicality"), ("profile", "profile")):
        values = [float(row[column]) for row in (*sides["in"], *sides["out"])]
        assert content["scores"][name]["auroc"] == pytest.approx(
            roc_auc_score([0] * 25 + [1] * 26, values), abs=1e-6
        )
    # Held against the reference alone, which takes no part in the areas.
    reference = torch.tensor([float(row["bits_per_dim"]) for row in sides["reference"]], dtype=torch.float64)
    strangeness = typicality(torch.tensor(bits, dtype=torch.float64), reference).tolist()
    assert [float(row["typicality"]) for row in found] == pytest.approx(strangeness, rel=1e-2, abs=1e-3)
    with Image.open(results / "ood.png") as drawn:
        assert drawn.width > 1500
    assert (results / "ood.pdf").read_bytes().startswith(b"%PDF")
    with (results / "failures.csv").open(newline="") as file:
        assert {row["file"] for row in csv.DictReader(file)} == {"in/broken.png", "strange/other.png"}

    printed = workspace.run("ood", *arguments, "--resize", "--batch-size", "7", "--workers", "0")
    assert "against 27 of --out" in printed
    again = json.loads((workspace.folder / "ood" / "ood.json").read_text())
    assert again["images"]["out"] == 27
    assert "--psnr -40" in workspace.fail("ood", *arguments, "--psnr=-40")
    assert "--device abacus" in workspace.fail("ood", *arguments, "--device", "abacus")


def test_what_is_missing_is_said_in_one_line(workspace: Workspace) -> None:
    for name, count in (
        ("many", 2 * FEWEST),
        ("few", FEWEST - 1),
        ("none", 0),
        ("one", 1),
        ("many/within", FEWEST),
    ):
        Path(name).mkdir()
        for k in range(count):
            picture(k).save(f"{name}/{k:02d}.png")

    def line(inside: str, outside: str) -> str:
        return workspace.fail("ood", "nothing.ckpt", "--in", *inside.split(), "--out", *outside.split())

    assert "absent: no such file or folder" in line("many", "absent")
    assert "many of --in and few/../many of --out hold the same files" in line("many", "few/../many")
    assert "many of --in and many/within of --out hold the same files" in line("few many", "many/within")
    assert "many/within/00.png of --in and many/within of" in line("many/within/00.png", "many/within")
    assert "--out few: 19 images, and 20 are needed" in line("many", "few")
    assert "--out none: 0 images" in line("many", "none")
    assert "--in few: 19 images, and 40 are needed, half of them to compare with" in line("few", "many")
    assert "no such checkpoint" in line("many", "few one")
    assert "--out few: 19 images, and 20 are needed" in line("many", "few none/../few")
    assert "few: holds the images" in line("many", "few --results ./few")
    hint = "ood: no such file or folder; --out are the other images, --results is where results go"
    assert hint in line("many", "ood")


def test_make_keeps_names_with_spaces_whole(tmp_path: Path) -> None:
    """What the Makefile gives to the command line, by a Python that prints its arguments."""

    def make(*arguments: str) -> list[str]:
        return given_by_make(tmp_path, *arguments)[2:]

    folder = tmp_path / "my  photos"
    folder.mkdir()
    images = f"""'{folder}' "~/all of it" '~/a "b" c' ~/d.png {tmp_path}/my*"""
    paths = [str(folder), "/home/me/all of it", '/home/me/a "b" c', "/home/me/d.png", str(folder)]
    found = make("score", "CKPT=~/m.ckpt", f"IMAGES={images}", "OUT=my scores", "PSNR=20", "NORMALIZE=1")
    assert found == [
        "score", "/home/me/m.ckpt", *paths, "--out", "my scores", "--psnr", "20", "--normalize"
    ]  # fmt: skip
    found = make("ood", "CKPT=runs/m", f"IN={images}", 'OUT=a "b c"', "PSNR=40 20", "RESIZE=1", "RESULTS=~/r")
    assert found == [
        "ood", "runs/m", "--in", *paths, "--out", "a", "b c", "--results", "/home/me/r", "--psnr", "40", "20",
        "--resize",
    ]  # fmt: skip
    assert make("ood", "CKPT=m", "IN=a", "OUT=b", "RESIZE=0") == ["ood", "m", "--in", "a", "--out", "b"]


def test_too_few_different_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: Path
) -> None:
    inside = draw_folder(tmp_path / "in", 40, one_factor(1.0), seed=0)
    same = tmp_path / "same"
    same.mkdir()
    for k in range(30):
        picture(k % 19).convert("L").save(same / f"{k}.png")
    out = tmp_path / "ood"
    with pytest.raises(ScoreError, match=r"--out: 19 different images, and 20 are needed$"):
        detect(exact, [inside], [same], out)
    for k in range(12):
        (inside / f"{k:03d}.png").write_bytes(b"no image")
    with pytest.raises(ScoreError, match=r"--in: 28 different .* needed.*; 12 left out: .*000.png cannot be"):
        detect(exact, [inside], [same], out)
    copies = draw_folder(tmp_path / "copies", 40, one_factor(1.0), seed=0)
    again = draw_folder(tmp_path / "again", 40, one_factor(1.0), seed=0)
    with pytest.raises(ScoreError, match=r"every image of --out is in --in too"):
        detect(exact, [copies], [again], out)
    large = tmp_path / "large"
    large.mkdir()
    for k in range(20):
        picture(k, 12).save(large / f"{k}.png")
    with pytest.raises(ScoreError, match=r"--out: 0 different images, .*; 20 left out: .*is 12×12"):
        detect(exact, [copies], [large], out)
    assert not (tmp_path / "ood" / "ood.json").exists()

    model = exact_model()
    model.log_normalizer = None
    monkeypatch.setattr(detect_ood, "load", lambda _: model)
    other = draw_folder(tmp_path / "other", 20, one_factor(0.5), seed=1)
    with pytest.raises(NormalizationError, match="--normalize"):
        detect(exact, [copies], [other], out)
    found = detect(exact, [copies], [other], tmp_path / "ood", normalize=True)
    assert abs(found["log_normalizer"]) < 0.2


def test_figures_that_are_not_finite_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: Path
) -> None:
    inside = draw_folder(tmp_path / "in", 50, one_factor(1.0), seed=0)
    outside = draw_folder(tmp_path / "out", 25, one_factor(0.5), seed=1)
    model = exact_model()
    bits = model.bits_per_dim

    def broken(images: Tensor, batch_size: int) -> Tensor:
        found = bits(images, batch_size)
        found[1] = math.nan
        return found

    monkeypatch.setattr(model, "bits_per_dim", broken)
    monkeypatch.setattr(detect_ood, "load", lambda _: model)
    found = detect(exact, [inside], [outside], tmp_path / "ood")
    assert found["failed"] == {"in": 1, "out": 1}
    assert found["images"] == {"reference": 25, "in": 24, "out": 24}
    assert not any(row["file"].endswith("001.png") for row in rows(tmp_path / "ood"))
