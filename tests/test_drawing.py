"""Drawing samples by command, and pictures in TensorBoard: whole runs on tiny models."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dualscore
from dualscore.images import to_pixels
from dualscore.likelihood.noise_level import NoiseLevel
from dualscore.model import ImageModel
from dualscore.noise import fixed_noise
from dualscore.pictures.grids import GAP, LINE, SIDE, arrange, tile
from dualscore.training.callbacks import pictures
from workspace import TINY, Workspace

SETTINGS = [*TINY, "trainer.validate_every=2", "optim.warmup_steps=0", "data.workers=0"]


def fill(folder: Path, sizes: dict[str, int]) -> list[str]:
    folder.mkdir()
    for k, (name, size) in enumerate(sizes.items()):
        pixels = np.random.default_rng(k).normal(128, 40, (size, size, 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return [str(folder / name) for name in sizes]


def content(out: Path) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((out / "samples.json").read_text())  # type: ignore[type-arg]
    return found


def stored(out: Path) -> torch.Tensor:
    """The PNG files as pixels, shape (n, 1, H, W)."""
    files = sorted((out / "samples").iterdir())
    return to_pixels(
        torch.stack([torch.from_numpy(np.asarray(Image.open(f)).copy())[None] for f in files]), 1
    )


def test_a_trained_model_is_drawn_from(workspace: Workspace, demo_shards: Path) -> None:
    data = f"data.path={demo_shards}"
    workspace.run("train", "patches_dual", *SETTINGS, "trainer.max_steps=2", data)
    model, out = dualscore.load("runs/patches_dual"), workspace.folder / "drawn"
    for method, weighted in (("metropolis", True), ("langevin", False), ("flow", False)):
        options = ["--method", method, "--count", "5", "--steps", "12", "--out", "drawn", "--batch-size", "3"]
        printed = workspace.run("sample", "runs/patches_dual", *options, "--device", "cpu")
        assert f"5 samples by {method}" in printed
        found, drawn = content(out), stored(out)
        assert [row["file"] for row in found["samples"]] == [f"{k:06d}.png" for k in range(5)]
        bits = [row["bits_per_dim"] for row in found["samples"]]
        assert bits == pytest.approx(model.bits_per_dim(drawn).tolist(), abs=1e-4)
        assert all((row["log_weight"] is not None) == weighted for row in found["samples"])
        assert ("acceptance" in found) == weighted
        assert len(found.get("acceptance_of_levels", range(11))) == 11
        with np.load(out / "samples.npz") as floats:
            images = torch.from_numpy(floats["images"])
        assert images.shape == (5, 1, 16, 16)
        assert torch.allclose(images.clamp(0, 1), drawn, atol=0.5 / 255 + 1e-6)
        workspace.run("sample", "runs/patches_dual", *options, "--seed", "1")
        assert not torch.equal(stored(out), drawn)
    workspace.run("sample", "runs/patches_dual", "--count", "2", "--steps", "3", "--out", "drawn")
    assert len(stored(out)) == 2  # nothing of the time before is left

    fine = fill(workspace.folder / "images", {"a.png": 16, "b.png": 16})
    large = fill(workspace.folder / "large", {"c.png": 20})
    few = ["--count", "2", "--steps", "8", "--out", "drawn"]
    assert "PSNR of the noisy images" in workspace.run(
        "denoise", "runs/patches_dual", *fine, "--psnr", "15", *few
    )
    found = content(out)
    clean = to_pixels(
        torch.stack([torch.from_numpy(np.asarray(Image.open(f)).copy()).permute(2, 0, 1) for f in fine]), 1
    )
    noise = 10**-0.75 * fixed_noise(range(2), (1, 16, 16), 0)
    assert found["noisy_psnr"] == pytest.approx(float(-10 * noise.square().mean().log10()), abs=1e-3)
    assert [row["of"] for row in found["samples"]] == [fine[0], fine[0], fine[1], fine[1]]
    assert found["denoised_psnr"] > found["noisy_psnr"]

    blind = ["denoise", "runs/patches_dual", *fine, "--count", "2", "--steps", "8", "--out", "drawn"]
    assert "noise found" in workspace.run(*blind)
    found = content(out)
    assert [level["of"] for level in found["noise_levels"]] == fine
    assert all(0.0 < level["psnr"] < 60.0 and level["psnr_stderr"] > 0.0 for level in found["noise_levels"])
    assert len(stored(out)) == 4
    workspace.run(*blind, "--mean")
    assert len(stored(out)) == 2
    with pytest.MonkeyPatch.context() as patch:
        nothing = torch.full((2,), torch.nan, dtype=torch.float64)
        patch.setattr(ImageModel, "noise_level", lambda *_: NoiseLevel(nothing, nothing))
        assert f"{fine[0]}: no noise was found in it" in workspace.fail(*blind)

    mask = np.zeros((16, 16), np.uint8)
    mask[:, :6] = 255
    Image.fromarray(mask).save("mask.png")
    workspace.run("inpaint", "runs/patches_dual", *fine, "--mask", "mask.png", *few, "--method", "langevin")
    painted = stored(out).view(2, 2, 1, 16, 16)
    assert torch.equal(painted[:, :, :, :, 6:], clean[:, None, :, :, 6:].expand(-1, 2, -1, -1, -1))
    assert not torch.equal(painted[:, 0, :, :, :6], painted[:, 1, :, :, :6])
    assert content(out)["missing"] == 96
    workspace.run("inpaint", "runs/patches_dual", *large, "--resize", *few)
    assert content(out)["missing"] == 64

    wrong = ["runs/patches_dual", *fine, *few]
    assert "is 20×20, but wanted are 16×16" in workspace.fail("denoise", "runs/patches_dual", *large)
    assert "between -23.01 (the strongest noise in training) and 55 dB" in workspace.fail(
        "denoise", *wrong, "--psnr", "90"
    )
    assert "--psnr -1e+06: must be between" in workspace.fail("denoise", *wrong, "--psnr=-1e6")
    assert "large/c.png: is 20×20" in workspace.fail("inpaint", *wrong, "--mask", "large/c.png")
    assert "no such file" in workspace.fail("inpaint", *wrong, "--mask", "none.png")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save("black.png")
    assert "must be white" in workspace.fail("inpaint", *wrong, "--mask", "black.png")
    assert "2 or more" in workspace.fail("sample", "runs/patches_dual", "--steps", "1")
    assert "--device abacus" in workspace.fail("sample", "runs/patches_dual", "--device", "abacus")
    (workspace.folder / "notes.txt").write_text("no image")
    assert "notes.txt: cannot be decoded" in workspace.fail("denoise", "runs/patches_dual", "notes.txt")


def pictures_of(run: Path) -> dict[str, dict[int, Image.Image]]:
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    return {
        tag: {e.step: Image.open(io.BytesIO(e.encoded_image_string)) for e in events.Images(tag)}
        for tag in events.Tags()["images"]
    }


def test_validations_leave_pictures_and_training_alone(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SETTINGS, "trainer.validate_every=1", f"data.path={demo_shards}"]
    monkeypatch.setattr(pictures, "STEPS", 4)
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=5", "--runs", "whole")
    found = pictures_of(workspace.folder / "whole" / "patches_dual")
    names = {f"denoised/+{decibels:02.0f}dB" for decibels in pictures.PSNR}
    assert found.keys() == names | {"energy_map", "samples"}
    for name in (*names, "energy_map"):
        assert sorted(found[name]) == [0, 1, 2, 3, 4]  # counted from 0, as curves are
    assert sorted(found["samples"]) == [3, 4]  # every fourth, and the last
    side = pictures.WIDTH // 3 // 16 * 16
    across, down = 3 * (side + GAP) + GAP, pictures.IMAGES * (side + GAP) + GAP + LINE
    assert found["denoised/+20dB"][0].size == (across, down)
    first, last = (np.asarray(found["denoised/+20dB"][step], np.float64) for step in (0, 4))
    column = slice(GAP, GAP + side)
    assert np.array_equal(first[:, column], last[:, column])  # the same images
    assert not np.array_equal(first, last)  # another model

    monkeypatch.setattr(pictures.Pictures, "after_validation", lambda *_: None)
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=5", "--runs", "plain")
    one, other = (
        torch.load(workspace.folder / runs / "patches_dual/checkpoints/last.ckpt", weights_only=True)
        for runs in ("whole", "plain")
    )
    for name, tensor in one["state_dict"].items():
        assert torch.equal(other["state_dict"][name], tensor), name


def test_vectors_have_no_pictures_and_are_not_drawn(workspace: Workspace) -> None:
    settings = [*TINY, "data.size=16", "trainer.max_steps=1", "data.workers=0", "optim.warmup_steps=0"]
    workspace.run("train", "scale_mixture_dual", *settings)
    assert pictures_of(workspace.folder / "runs" / "scale_mixture_dual") == {}
    assert "not a model of images" in workspace.fail("sample", "runs/scale_mixture_dual")


def test_a_grid_shows_every_image_in_its_place() -> None:
    images = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 32, 32)
    grid = arrange(images)
    assert grid.shape == (3, 2, 3, 32, 32)
    picture = tile(grid)
    assert picture.shape == (3 * (SIDE + GAP) + GAP, 2 * (SIDE + GAP) + GAP, 3)
    middles = [GAP + SIDE // 2 + k * (SIDE + GAP) for k in range(3)]
    shown = [picture[y, x, 0] for y in middles for x in middles[:2]]
    assert shown == [0, 64, 128, 191, 255, 255]  # the last place is empty
    assert tile(images[None, :1] * 9, ["a"]).shape[0] == 2 * GAP + SIDE + LINE


def test_a_picture_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualscore.dashboard.logger import PatientLogger

    warnings: list[str] = []
    logger = PatientLogger(tmp_path, 0, warnings.append)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.experiment, "add_image", full)
    logger.log_picture("samples", np.zeros((4, 4, 3), np.uint8), 1)
    assert "No space left" in warnings[0]
    logger.log_picture("samples", np.zeros((4, 4, 3), np.uint8), 2)  # into another file
    assert len(warnings) == 1
