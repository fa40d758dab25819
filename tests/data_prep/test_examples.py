"""The pictures to try a model on: held out, of the right size, and of another kind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.examples import TEXTURES, crops, main
from data_prep.sources.demo import TRAIN, VAL, locate
from prep_helpers import build, read_split


def test_examples_are_what_the_demo_holds_out(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "examples"), "--size", "32"]) == 0
    folders = {path.name: sorted(path.rglob("*.png")) for path in (tmp_path / "examples").iterdir()}
    assert {path.stem for path in folders["photographs"]} == set(VAL)
    assert not set(VAL) & set(TRAIN)
    held_out_images = [crop for package, file in VAL.values() for crop in crops(locate(package, file), 32)]
    held_out = {pixels.tobytes() for pixels in _validation(tmp_path / "demo32")}
    kinds = {
        kind: {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in folders[kind]}
        for kind in ("patches", "textures")
    }
    assert len(folders["patches"]) == len(folders["textures"]) == 128
    # A sub-folder a photograph, and evenly: each photograph has as large a part as of all its crops.
    for kind, names in {"patches": tuple(VAL), "textures": TEXTURES}.items():
        parents = [path.parent for path in folders[kind]]
        assert {path.parent for path in parents} == {tmp_path / "examples" / kind}
        assert {path.name for path in parents} == set(names)
    numbers = sorted(int(path.stem) for path in folders["patches"])
    total = len(held_out_images)
    assert numbers == np.linspace(0, total - 1, 128).round().astype(int).tolist()
    assert kinds["patches"] <= held_out
    assert not kinds["textures"] & held_out


def _validation(folder: Path) -> np.ndarray:
    build("demo", folder, size=32)
    return read_split(folder, "val")


def test_a_size_that_no_photograph_holds_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, reason in {"4000": "no photograph holds a crop of 4000×4000", "0": "at least 4, not 0"}.items():
        assert main(["--out", str(tmp_path / "examples"), "--size", size]) == 1
        assert reason in capsys.readouterr().err
