"""The verifier passes a good data set and finds each kind of damage."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.verify import verify
from dualscore.errors import DataError
from fakes import write_official_imagenet
from prep_helpers import build


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_official_imagenet(folder / "src", 32, 71, 24, batches=1)
    build("imagenet32", folder / "out", src=folder / "src")
    return folder / "out"


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def _edit(out: Path, change: Callable[[dict], object]) -> None:
    path = out / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _rewrite(out: Path, file: str, change: Callable[[list], list]) -> None:
    """Change a shard's entries and make the manifest's size and checksum fit."""
    with tarfile.open(out / file) as tar:
        entries = [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    with tarfile.open(out / file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in change(entries):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    raw = (out / file).read_bytes()

    def refit(document: dict) -> None:
        for split in document["splits"].values():
            for shard in split["shards"]:
                if shard["file"] == file:
                    shard |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}

    _edit(out, refit)


def test_sound(out: Path) -> None:
    assert verify(out, workers=1) == []
    assert verify(out, workers=2) == []


def test_rewriting_alone_does_no_damage(out: Path) -> None:
    _rewrite(out, "train-000001.tar", lambda entries: entries)
    assert verify(out, workers=1) == []


@pytest.mark.parametrize("position", [700, 5000, -1])
def test_flipped_byte(out: Path, position: int) -> None:
    path = out / "train-000002.tar"
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    assert verify(out, workers=1) == [f"{path} has another checksum than the manifest says"]


@pytest.mark.parametrize(
    ("length", "problem"),
    [(0, "cannot be read whole"), (3000, "cannot be read whole"), (4000, "holds 1 images")],
)
def test_truncated_shard(out: Path, length: int, problem: str) -> None:
    path = out / "test-000001.tar"
    path.write_bytes(path.read_bytes()[:length])
    problems = verify(out, workers=1)
    assert problems[0] == f"{path} has another checksum than the manifest says"
    assert problem in problems[1]


def test_missing_shard(out: Path) -> None:
    (out / "train-000000.tar").unlink()
    problems = verify(out, workers=1)
    assert len(problems) == 1
    assert "train-000000.tar cannot be read whole: [Errno 2]" in problems[0]


def test_swapped_shards(out: Path) -> None:
    (out / "train-000000.tar").rename(out / "aside")
    (out / "train-000001.tar").rename(out / "train-000000.tar")
    (out / "aside").rename(out / "train-000001.tar")
    problems = "\n".join(verify(out, workers=1))
    assert "train-000000.tar has another checksum" in problems
    assert "train-000001.tar has another checksum" in problems
    assert "entry 0 is 000000008.u8 instead of 000000000.u8" in problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda entries: entries[:-1], "holds 7 images, but the manifest says 8"),
        (
            lambda entries: [*entries, ("000000024.u8", entries[0][1])],
            "holds 9 images, but the manifest says 8",
        ),
        (lambda entries: entries[::-1], "entry 0 is 000000023.u8 instead of 000000016.u8"),
        (lambda entries: [(n.replace(".u8", ".raw"), c) for n, c in entries], "entry 0 is 000000016.raw"),
        (lambda entries: [(n, c[:-1]) for n, c in entries], "000000016.u8 has 3071 bytes instead of 3072"),
    ],
)
def test_wrong_entries_with_a_fitting_checksum(out: Path, change: Callable, problem: str) -> None:
    _rewrite(out, "train-000002.tar", change)
    problems = verify(out, workers=1)
    assert len(problems) == 1
    assert problem in problems[0]


def test_changed_pixels_with_a_fitting_checksum(out: Path) -> None:
    def brighten(entries: list) -> list:
        name, content = entries[3]
        return [*entries[:3], (name, bytes([content[0] ^ 128]) + content[1:]), *entries[4:]]

    _rewrite(out, "train-000002.tar", brighten)
    problems = "\n".join(verify(out, workers=1))
    assert "pixel_mean" in problems
    assert "pixel_variance" in problems
    assert "spectrum.npy is not the spectrum" in problems


def test_spectrum_of_other_images_with_a_fitting_checksum(out: Path) -> None:
    spectrum = np.load(out / "spectrum.npy")
    spectrum[0, 1, 2, 3] += 1e-6
    np.save(out / "spectrum.npy", spectrum)
    digest = hashlib.sha256((out / "spectrum.npy").read_bytes()).hexdigest()
    _edit(out, lambda document: document["statistics"].update(spectrum_sha256=digest))
    assert verify(out, workers=1) == [f"{out / 'spectrum.npy'} is not the spectrum of the training images"]


def test_damaged_spectrum(out: Path) -> None:
    np.save(out / "spectrum.npy", np.zeros((3, 3, 32, 32)))
    problems = verify(out, workers=1)
    assert len(problems) == 1
    assert "spectrum.npy has another checksum" in problems[0]


def test_wrong_counts_in_the_manifest(out: Path) -> None:
    def shift(document: dict) -> None:
        shards = document["splits"]["train"]["shards"]
        shards[0]["images"] += 1
        shards[1]["images"] -= 1

    _edit(out, shift)
    problems = "\n".join(verify(out, workers=1))
    assert "train-000000.tar holds 8 images, but the manifest says 9" in problems
    assert "entry 0 is 000000008.u8 instead of 000000009.u8" in problems


def test_total_that_does_not_add_up(out: Path) -> None:
    _edit(out, lambda document: document["splits"]["test"].update(images=25))
    with pytest.raises(DataError, match=r"splits\.test\.images is 25, but its shards hold 24"):
        verify(out, workers=1)


def test_at_most_twenty_problems(out: Path) -> None:
    for path in out.glob("*.tar"):
        path.write_bytes(b"nothing")
    problems = verify(out, workers=1)
    assert len(problems) == 20
    assert problems[-1] == "… and 27 more problems"  # two for each of 23 shards


def test_command_line(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(out), "--workers", "1"]) == 0
    assert "is right" in capsys.readouterr().out
    (out / "val-000000.tar").unlink()
    assert main(["verify", str(out), "--workers", "1"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "val-000000.tar" in errors[0]
