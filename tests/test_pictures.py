"""The README's picture: drawn whole by its script, for both kinds of pages, and small."""

import importlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dualscore
from workspace import ROOT


def test_the_readmes_picture_is_drawn_for_light_and_dark_pages(
    trained_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    picture = importlib.import_module("demo_picture")
    monkeypatch.setattr(picture, "STRIDE", 15)
    monkeypatch.setattr(picture, "sample", partial(picture.sample, steps=2))
    run = trained_demo / "runs/patches_dual"
    assert picture.main(["--model", str(run), "--out", str(tmp_path)]) == 0
    light, dark = (np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in picture.THEMES)
    assert light.shape == dark.shape
    assert light[0, 0].tolist() == [255, 255, 255]
    assert dark[0, 0].tolist() == [0x0D, 0x11, 0x17]
    measured = picture.measure(dualscore.load(run), picture.locate(*picture.VAL["chelsea"]))
    bits = measured["bits"]
    assert torch.equal(bits, bits.sort().values)
    assert torch.allclose(dualscore.load(run).bits_per_dim(measured["patches"]), bits)
    assert measured["map"].min() <= bits[0]


def test_the_pictures_of_the_readme_are_small_and_alike() -> None:
    files = [ROOT / "docs" / name for name in ("demo.png", "demo-dark.png")]
    assert all(file.stat().st_size < 300_000 for file in files)
    assert len({Image.open(file).size for file in files}) == 1
