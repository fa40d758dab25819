"""Scoring images: whole runs, ranks, heat maps, files of every kind, streams of constant memory."""

import csv
import errno
import hashlib
import json
import math
import os
import struct
import zlib
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import dualscore
from dualscore.energy import Denoiser, Energy, Fading
from dualscore.errors import NormalizationError, ScoreError
from dualscore.evaluation.store import DEFINITIONS, RowStore
from dualscore.gaussian import StationaryGaussian, WhiteGaussian
from dualscore.images import to_pixels
from dualscore.likelihood import mean
from dualscore.model import ImageModel
from dualscore.networks import LogEmbedding, UNet
from dualscore.scoring import image_files as files
from dualscore.scoring import score_files, score_images
from dualscore.scoring.image_files import Photographs
from dualscore.scoring.score_files import Thumbnail
from dualscore.scoring.score_images import SHEET_EACH, Written, find_reference
from dualscore.scoring.scorer import Reference, Scores, normalized, score_batch, wanted_size
from test_gaussian import random_spectrum
from workspace import TINY, Workspace

QUIET = Console(quiet=True)


def score(
    checkpoint: Path, given: list[Path], out: Path, console: Console = QUIET, **options: Any
) -> dict[str, Any]:
    """The summary, after printing what the command would."""
    found = score_images.score(checkpoint, given, out, console, **options)
    for part in found.report:
        console.print(part, soft_wrap=isinstance(part, str))
    return found.summary


def picture(seed: int, size: int = 8, contrast: float = 60.0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(128, contrast, (size, size, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def fill(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        picture(k, size, contrast=5.0 + k % 50).save(folder / f"{k:03d}.png")
    return folder


def unet(channels: int = 1, output_gain: float = 1.0) -> UNet:
    torch.manual_seed(0)
    return UNet(channels, LogEmbedding(), width=4, scales=1, layers=2, output_gain=output_gain)


def white(channels: int = 1) -> WhiteGaussian:
    return WhiteGaussian(torch.full((channels,), 0.5), torch.tensor(0.05))


def of_any_size(
    channels: int = 1, output_gain: float = 1.0, log_normalizer: float | None = 3.0
) -> ImageModel:
    gaussian = white(channels)
    energy = Energy(unet(channels, output_gain), gaussian, [gaussian], None, Fading(torch.tensor(0.05)))
    return ImageModel(energy, image_shape=(channels, 8, 8), log_normalizer=log_normalizer).eval()


def of_one_size() -> ImageModel:
    gaussian = StationaryGaussian(torch.tensor([0.5]), 0.1 * random_spectrum(1, 8, 8))
    return ImageModel(Energy(unet(), gaussian, [gaussian]), image_shape=(1, 8, 8), log_normalizer=3.0).eval()


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's name that stands for a model of any size."""
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"stands for a model")
    monkeypatch.setattr(score_images, "load", lambda _: of_any_size())
    return checkpoint


def test_a_trained_model_scores_files_and_folders(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
    workspace.run("train", "patches_dual", *settings, f"data.path={demo_shards}", "data.workers=0")
    folder = fill(workspace.folder / "images", 5, 16)
    picture(7, 16).convert("L").save(folder / "gray.png")
    picture(8, 16).quantize(16).save(folder / "palette.png")
    (folder / "deeper").mkdir()
    picture(9, 16).save(folder / "deeper" / "photograph.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    picture(1, 20).save(folder / "other.png")
    printed = workspace.run("score", "runs/patches_dual", "images", "--psnr", "20", "--out", "scored")
    out = workspace.folder / "scored"
    found = rows(out)
    assert [Path(row["file"]).name for row in found] == [
        "000.png", "001.png", "002.png", "003.png", "004.png", "gray.png", "palette.png", "photograph.jpg"
    ]  # fmt: skip

    model = dualscore.load("runs/patches_dual/checkpoints/best.ckpt")
    stored = [np.asarray(Image.open(row["file"]).convert("RGB")).transpose(2, 0, 1) for row in found]
    pixels = to_pixels(torch.from_numpy(np.stack(stored)), 1)
    bits = [float(row["bits_per_dim"]) for row in found]
    assert bits == pytest.approx(model.bits_per_dim(pixels).tolist(), abs=1e-4)
    decibels = (model.log_prob(pixels) * 10 / (256 * math.log(10))).tolist()
    assert [float(row["db_per_dim"]) for row in found] == pytest.approx(decibels, abs=1e-4)
    # The evaluation's own rows, ranked by hand.
    (part,) = (workspace.folder / "runs" / "patches_dual" / "evaluation").glob("paper-*/*.npz")
    with np.load(part) as content:
        energies = content["energy"]
    mine = model.energy(pixels).tolist()
    by_hand = [100 * sum(e > own for e in energies) / len(energies) for own in mine]
    assert [float(row["percentile"]) for row in found] == pytest.approx(by_hand, abs=100 / len(energies))
    assert all(0 < float(row["effective_dimension"]) < 3 * 256 for row in found)

    content = json.loads((out / "scores.json").read_text())
    assert content["images"] == len(content["scores"]) == 8
    assert content["failed"] == 2
    assert content["validation"]["images"] == len(energies)
    assert [entry["bits_per_dim"] for entry in content["scores"]] == bits
    assert content["mean_bits_per_dim"] == pytest.approx(np.mean(bits), rel=1e-6)
    with Image.open(out / "sheet.png") as drawn:
        assert drawn.width > 400
    for row in found:
        with Image.open(out / row["map"]) as heat:
            assert heat.size == (16, 16)
    with (out / "failures.csv").open(newline="") as file:
        failures = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert "cannot be decoded" in failures["broken.png"]
    assert "is 20×20, but wanted are 16×16 images" in failures["other.png"]
    assert "2 left out" in printed
    assert "8 images" in printed
    assert "scores.csv, scores.json, failures.csv, sheet.png, maps/" in printed

    # Where no evaluation is found the percentiles stay empty, and that is said.
    Path("alone.ckpt").write_bytes(Path("runs/patches_dual/checkpoints/best.ckpt").read_bytes())
    printed = workspace.run("score", "alone.ckpt", "images/gray.png", "--no-maps")
    assert "no percentiles" in printed
    (row,) = rows(workspace.folder / "scores")
    assert (row["percentile"], row["effective_dimension"], row["map"]) == ("", "", "")
    assert not (workspace.folder / "scores" / "maps").exists()
    assert "--psnr nan" in workspace.fail("score", "alone.ckpt", "images/gray.png", "--psnr", "nan")
    assert "--psnr -40" in workspace.fail("score", "alone.ckpt", "images/gray.png", "--psnr=-40")
    assert "--device" in workspace.fail("score", "alone.ckpt", "images/gray.png", "--device", "abacus")
    line = workspace.fail("score", "runs/patches_dual", "images/other.png", "--out", "again")
    assert "no image could be scored: images/other.png is 20×20" in line
    assert "--resize" in line
    resized = workspace.run("score", "runs/patches_dual", "images/other.png", "--out", "again", "--resize")
    assert "one image" in resized


def test_what_is_missing_is_said_in_one_line(workspace: Workspace) -> None:
    assert "no such checkpoint" in workspace.fail("score", "nothing.ckpt", str(workspace.folder))
    picture(0).save("a.png")
    assert "no such file or folder" in workspace.fail("score", "nothing.ckpt", "a.png", "b.png")


def test_a_model_without_a_normalizer_is_refused_unless_it_may_be_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Path
) -> None:
    folder = fill(tmp_path / "images", 4)
    monkeypatch.setattr(score_images, "load", lambda _: of_any_size(output_gain=0.0, log_normalizer=None))
    with pytest.raises(NormalizationError, match="--normalize"):
        score(loaded, [folder], tmp_path / "out")
    # A Gaussian's own energy is normalized: log Z is found to be 0, but for the images' own variance.
    summary = score(loaded, [folder], tmp_path / "out", normalize=True)
    assert abs(summary["log_normalizer"]) < 0.1


def test_percentiles_are_ranks() -> None:
    reference = Reference(torch.tensor([5.0, 1.0, 3.0, 3.0]), "")
    # Fewer nats are more probable: above are the energies 5; 5 and half of the 3; …
    found = reference.percentile(torch.tensor([4.0, 3.0, 0.0, 9.0, 1.0]))
    assert found.tolist() == [25.0, 50.0, 100.0, 0.0, 87.5]


def test_the_rows_of_the_checkpoints_own_evaluation_are_found(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    assert find_reference(checkpoint) is None

    def keep(energies: list[float], **identity: object) -> None:
        store = RowStore(tmp_path / "evaluation", "paper", identity, rank=0)
        store.folder.mkdir(parents=True)
        (store.folder / "identity.json").write_text(json.dumps(identity))
        store.add({"position": torch.arange(len(energies)), "energy": torch.tensor(energies)})
        store.flush()

    digest = hashlib.sha256(b"weights").hexdigest()
    keep([1.0] * 9, checkpoint="another", split="val", definitions=DEFINITIONS)
    keep([1.0] * 8, checkpoint=digest, split="train", definitions=DEFINITIONS)
    keep([1.0] * 7, checkpoint=digest, split="val", definitions=DEFINITIONS - 1)
    assert find_reference(checkpoint) is None
    keep([4.0, 2.0], checkpoint=digest, split="val", definitions=DEFINITIONS, count=2)
    keep([4.0, 2.0, 3.0], checkpoint=digest, split="val", definitions=DEFINITIONS, count=3)
    found = find_reference(checkpoint)
    assert found is not None
    assert sorted(found.energies.tolist()) == [2.0, 3.0, 4.0]
    assert found.which == "validation images"
    # Of test images where an evaluation reported those: most images win.
    keep([5.0, 6.0, 7.0, 8.0], checkpoint=digest, split="test", definitions=DEFINITIONS, count=4)
    keep([1.0] * 9, checkpoint=digest, split="test", definitions=DEFINITIONS - 1)
    tested = find_reference(checkpoint)
    assert tested is not None
    assert sorted(tested.energies.tolist()) == [5.0, 6.0, 7.0, 8.0]
    assert tested.which == "test images"


@pytest.mark.parametrize("channels", [1, 3])
def test_heat_maps_average_to_bits_per_dim(channels: int) -> None:
    model = of_any_size(channels)
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = score_batch(model, images)
    assert found.maps.shape == (5, 8, 8)
    assert torch.allclose(found.maps.mean(dim=(1, 2)), found.columns["bits_per_dim"])
    expected = model.bits_per_dim(to_pixels(images, channels)).double()
    assert torch.allclose(found.columns["bits_per_dim"], expected, rtol=1e-5)
    assert torch.equal(found.pixels.float() / 255, to_pixels(images, channels))


def test_the_effective_dimension_of_a_gaussian_is_known() -> None:
    """x̂ = μ + s(y − μ), s = σ²/(σ² + t): E‖x − x̂‖²/t = ((1 − s)²‖x − μ‖² + s²dt)/t."""
    model = of_any_size(3, output_gain=0.0)
    images = torch.randint(0, 256, (200, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = score_batch(model, images, psnr=10.0).columns
    value, error = found["effective_dimension"], found["effective_dimension_stderr"]
    t, s = 0.1, 0.05 / 0.15
    square = (to_pixels(images, 3) - 0.5).square().sum(dim=(1, 2, 3)).double()
    exact = ((1 - s) ** 2 * square + s**2 * 192 * t) / t
    # Of 4 draws the error over all images is small, and each is within its own few standard errors.
    assert float((value - exact).mean()) == pytest.approx(0.0, abs=4 * float(error.mean()) / 200**0.5)
    assert 0.5 < float(((value - exact) / error).abs().median()) < 1.1
    # It depends on the image alone, not on its place in the batch.
    again = score_batch(model, images[7:9], psnr=10.0).columns["effective_dimension"]
    assert torch.allclose(again, value[7:9], rtol=1e-4)


def test_sizes_that_a_model_can_score(tmp_path: Path) -> None:
    small, large = fill(tmp_path / "small", 2), fill(tmp_path / "large", 2, 12)
    odd = fill(tmp_path / "odd", 1, 9)

    def size(
        model: ImageModel, folder: Path, resize: bool = False, normalize: bool = False
    ) -> tuple[int, int]:
        found = wanted_size(model, [folder], tmp_path / "out", resize=resize, normalize=normalize)
        return found.height, found.width

    assert size(of_any_size(), small) == size(of_any_size(), large) == (8, 8)
    assert size(of_any_size(), large, normalize=True) == (12, 12)
    assert size(of_any_size(), large, resize=True, normalize=True) == (8, 8)
    assert size(of_one_size(), large, normalize=True) == (8, 8)
    with pytest.raises(ScoreError, match="9×9; the network takes sides divisible by 2"):
        size(of_any_size(), odd, normalize=True)
    with pytest.raises(NormalizationError, match="denoiser"):
        size(ImageModel(Denoiser(unet()), log_normalizer=0.0), small)
    with pytest.raises(ScoreError, match="no image that can be read"):
        size(of_any_size(), tmp_path / "out", normalize=True)


def test_another_size_has_a_log_z_of_its_own() -> None:
    model = of_any_size(output_gain=0.0)
    wanted = files.Size(1, 12, 12)
    images = torch.full((3, 3, 12, 12), 128, dtype=torch.uint8)
    assert normalized(model, images[..., :8, :8], files.Size(1, 8, 8)) is model
    other = normalized(model, images, wanted)
    assert other.image_shape == (1, 12, 12)
    assert other.log_normalizer is not None
    assert abs(other.log_normalizer) < 0.1


def test_a_spectrum_of_one_size_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Path
) -> None:
    monkeypatch.setattr(score_images, "load", lambda _: of_one_size())
    large = fill(tmp_path / "large", 2, 12)
    with pytest.raises(
        ScoreError, match="the size that the model was trained on, and the only one that it knows"
    ):
        score(loaded, [large], tmp_path / "out", normalize=True)
    assert score(loaded, [large], tmp_path / "out", resize=True)["images"] == 2


def test_three_hundred_images_take_no_more_memory_than_sixty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Path
) -> None:
    folder = fill(tmp_path / "images", 300)
    held, appended = [0], [0]
    add, append = Written.add, score_files.append

    def counted(self: Written, *batch: Any) -> None:
        add(self, *batch)
        held[0] = max(held[0], len(self.kept))

    def watched(file: Any, lines: Any) -> None:
        appended[0] = max(appended[0], len(lines))
        append(file, lines)

    monkeypatch.setattr(Written, "add", counted)
    monkeypatch.setattr(score_files, "append", watched)
    out = tmp_path / "out"
    summary = score(loaded, [folder], out, batch_size=16, maps=False)
    assert summary["images"] == len(rows(out)) == 300
    assert held[0] == 2 * SHEET_EACH
    assert appended[0] == 16


def test_sub_folders_are_photographs_where_no_image_lies_beside_them(tmp_path: Path) -> None:
    for name in (
        "cut/a/0.png",
        "cut/a/deep/1.png",
        "cut/b/0.png",
        "mixed/a/0.png",
        "mixed/0.png",
        "flat/0.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(tmp_path / name)
    (tmp_path / "cut" / "notes.txt").write_text("no picture")
    picture(0).save(tmp_path / "cut" / ".hidden.png")
    given = [tmp_path / "mixed", tmp_path / "cut", tmp_path / "flat", tmp_path / "cut" / "a" / "0.png"]
    found = list(map(str, files.find(given, tmp_path / "out")))
    photographs = Photographs(given, found)
    # mixed/0.png, mixed/a/0.png, three of cut: a, a and b, flat/0.png
    assert list(photographs.groups) == [-1, -2, 0, 0, 1, -6]
    assert str(photographs) == "5 photographs (2 by sub-folder, 3 by image)"
    # The photograph's own folder says nothing of it.
    assert Photographs([tmp_path / "cut" / "b"], [found[4]]).groups[0] == -1


def test_a_mean_is_told_with_its_photographs(tmp_path: Path, loaded: Path) -> None:
    for number in range(3):
        for k in range(4):
            path = tmp_path / "images" / f"p{number}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * number + k, contrast=5.0 + 20.0 * number).save(path)

    def told(given: Path) -> tuple[dict[str, Any], str]:
        printed = StringIO()
        out = tmp_path / "out"
        score(loaded, [given], out, Console(file=printed, width=300), batch_size=5, maps=False)
        return json.loads((out / "scores.json").read_text()), printed.getvalue()

    content, printed = told(tmp_path / "images")
    bits = torch.tensor([entry["bits_per_dim"] for entry in content["scores"]])
    over = [mean(bits, groups) for groups in (torch.arange(3).repeat_interleave(4), None)]
    assert (content["images"], content["photographs"]) == (12, 3)
    assert content["stderr"] == pytest.approx(over[0].stderr, rel=1e-4)
    assert f"{over[0]} bits/dim, the mean of 12 images; ± is over 3 photographs (sub-folders)" in printed
    picture(0).save(tmp_path / "images" / "beside.png")
    content, printed = told(tmp_path / "images")
    assert content["photographs"] == 13
    assert content["stderr"] < 0.8 * over[0].stderr
    assert "13 images; ± is over 13 photographs (each image its own)" in printed
    (tmp_path / "one").mkdir()
    (tmp_path / "images" / "p0").rename(tmp_path / "one" / "p0")
    content, printed = told(tmp_path / "one")
    assert (content["photographs"], content["stderr"]) == (1, None)
    assert "the mean of 4 images, one photograph (sub-folder): no error" in printed


def test_loader_processes_keep_the_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", 23)
    (folder / "007.png").write_bytes(b"")
    picture(99).save(tmp_path / "last.png")
    stream = files.ImageFiles([folder, tmp_path / "last.png"], tmp_path / "out", files.Size(3, 8, 8), 4)

    def read(workers: int) -> tuple[list[files.Chunk], files.Problems]:
        problems = files.Problems()
        with files.read_batches(stream, workers, problems, QUIET, "read") as chunks:
            return list(chunks), problems

    (alone, _), (shared, problems) = read(0), read(2)
    assert [chunk.paths for chunk in alone] == [chunk.paths for chunk in shared]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, shared, strict=True))
    assert sum(len(chunk.paths) for chunk in alone) == 23
    assert shared[1].failed[0][0].endswith("007.png")
    assert (problems.count, "007.png" in problems.first) == (1, True)


def test_loader_processes_give_the_same_files(tmp_path: Path, loaded: Path) -> None:
    folder = fill(tmp_path / "images", 23)
    (folder / "007.png").write_bytes(b"")
    outs = [tmp_path / "alone", tmp_path / "shared"]
    for out, workers in zip(outs, (0, 1), strict=True):
        score(loaded, [folder], out, batch_size=5, workers=workers)
    names = sorted(p.relative_to(outs[0]) for p in outs[0].rglob("*") if p.is_file())
    assert sum(name.parts[0] == "maps" for name in names) == 22
    assert names == sorted(p.relative_to(outs[1]) for p in outs[1].rglob("*") if p.is_file())
    assert all((outs[0] / name).read_bytes() == (outs[1] / name).read_bytes() for name in names)


def test_a_map_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Path
) -> None:
    monkeypatch.setattr(score_images, "_prepare", lambda out, _: out.mkdir())  # makes no folder for maps
    with pytest.raises(OSError, match="No such file or directory"):
        score(loaded, [fill(tmp_path / "images", 3)], tmp_path / "out")


def test_its_own_results_are_not_scored(tmp_path: Path, loaded: Path) -> None:
    folder = fill(tmp_path / "images", 3)
    for _ in range(2):
        assert score(loaded, [folder], folder / "out")["images"] == 3
    assert len(list((folder / "out" / "maps").iterdir())) == 3
    with pytest.raises(ScoreError, match="images: holds the images; name another folder for the results"):
        score(loaded, [folder], folder / "out" / "..")
    assert not (folder / "maps").exists()


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "images", 3)
    closed = fill(folder / "closed", 2)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read anything
    summary = score(loaded, [folder], tmp_path / "out")
    assert (summary["images"], summary["failed"]) == (3, 1)
    assert f"{closed}," in (tmp_path / "out" / "failures.csv").read_text()


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0, 40).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="is 40×40, but wanted are 8×8 images, why"):
        files.decode(tmp_path / "large.png", files.Size(3, 8, 8, hint=", why"))
    monkeypatch.setattr(files, "MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match="too many pixels: 40×40"):
        files.decode(tmp_path / "large.png", files.Size(3, 8, 8, resize=True))
    with pytest.raises(ValueError, match="not a file"):
        files.decode(tmp_path, files.Size(3, 8, 8))
    # Refused by what its header says, before anything is unpacked.
    (tmp_path / "bomb.png").write_bytes(bomb(60_000))
    with pytest.raises(ValueError, match=r"too many pixels"):
        files.decode(tmp_path / "bomb.png", files.Size(3, 8, 8, resize=True))


def bomb(side: int) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", b"") + part(b"IEND", b"")


def test_resizing_averages_the_middle(tmp_path: Path) -> None:
    pixels = np.asarray(picture(0, 16))
    Image.fromarray(np.pad(pixels, ((0, 0), (5, 5), (0, 0)))).save(tmp_path / "wide.png")
    found = files.decode(tmp_path / "wide.png", files.Size(3, 8, 8, resize=True))
    means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(found - means).max() <= 1


def test_an_energy_that_is_not_finite_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Path
) -> None:
    folder = fill(tmp_path / "images", 3)
    model = of_any_size()

    def broken(images: torch.Tensor, *_: object) -> torch.Tensor:
        maps = torch.zeros(len(images), 8, 8)
        maps[1, 0, 0] = math.nan
        return maps

    monkeypatch.setattr(model, "energy_map", broken)
    monkeypatch.setattr(score_images, "load", lambda _: model)
    summary = score(loaded, [folder], tmp_path / "out")
    assert (summary["images"], summary["failed"]) == (2, 1)


def test_extremes_are_the_first_and_the_last_in_rank(tmp_path: Path) -> None:
    bits = torch.randint(0, 400, (200,), generator=torch.Generator().manual_seed(0)).double()
    with score_files.open_csv(tmp_path / "scores.csv", score_files.COLUMNS) as file:
        written = Written(tmp_path, file, None)
        for part in bits.split(7):
            blank = torch.zeros(len(part), 1, 8, 8)
            columns = {"bits_per_dim": part, "db_per_dim": part}
            written.add(["image.png"] * len(part), Scores(columns, blank[:, 0].double(), blank))
    rising = bits.sort().values.tolist()
    assert [kept.bits for kept in written.kept] == rising[:SHEET_EACH] + rising[-SHEET_EACH:]
    assert list(written.bits) == bits.tolist()


def test_a_sheet_counts_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    tile = score_files.tile

    def watched(*arguments: Any, caption: str, side: int) -> Any:
        captions.append(caption.partition("\n")[0])
        return tile(*arguments, caption=caption, side=side)

    monkeypatch.setattr(score_files, "tile", watched)
    kept = [Thumbnail(3.0, k, {"file": "a.png"}, np.zeros((2, 8, 8, 3), np.uint8)) for k in range(60)]
    for shown, seen in ((1, 1), (2, 2), (60, 1000)):
        score_files.draw_sheet(kept[:shown], seen, (0.0, 1.0))
    assert [caption for caption in captions if caption != "3.000"] == [
        "the image: bits/dim, file",
        "the 2 images, the most probable first: bits/dim, file",
        "the extremes of 1,000 images, the most probable first: bits/dim, file",
    ]


def test_strange_names_come_through(tmp_path: Path, loaded: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a, b.png", "[red]c.png", 'quo"te.png', "new\nline.png", "\udcff.png"):
        picture(0).save(folder / name)
    out = tmp_path / "out"
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as file:
        score(loaded, [folder], out, Console(file=file, width=200))
    assert "[red]c.png" in (tmp_path / "printed.txt").read_text()
    listed = [entry["file"] for entry in json.loads((out / "scores.json").read_text())["scores"]]
    assert sorted(listed) == sorted(str(path) for path in folder.iterdir())
