"""`dualscore score` of photographs as they are: what it reads, what it writes, how it goes on, in parts."""

import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dualscore
import forking
from dualscore import bars
from dualscore.cli import main
from dualscore.errors import ScoreError
from dualscore.scoring import whole_photographs
from dualscore.scoring.photograph_scores import smooth
from dualscore.scoring.picture_stream import pictures
from dualscore.scoring.row_files import COLUMNS, FAILED, RowFiles, read_rows
from dualscore.scoring.which_model import part_of, which
from fakes import photograph
from workspace import run_code

DIGITS = 5e-4
"""Relative, of the bits of noise: an unlikely level has a small difference, in single precision."""
SIZES = [(9, 14), (9, 14), (20, 7), (1, 1), (1, 40), (16, 16)]  # (height, width)


def picture(height: int, width: int, seed: int, gray: bool = False) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(90, 130, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.repeat(pixels[..., :1], 3, axis=2) if gray else pixels)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eleven pictures, a gray one and three in a tar among them, and two that are none."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate(SIZES):
        picture(*size, number).save(photos / f"{number}.png")
    picture(12, 9, 20, gray=True).save(photos / "6.png")
    (photos / "5b.png").write_text("no picture")
    with tarfile.open(photos / "7.tar", "w") as tar:
        for number in range(3):
            file = io.BytesIO()
            picture(9, 14, 30 + number).save(file, "PNG")
            entry = tarfile.TarInfo(f"{number:04d}.png")
            entry.size = len(file.getvalue())
            tar.addfile(entry, io.BytesIO(file.getvalue()))
    (photos / "8.png").write_bytes((photos / "0.png").read_bytes()[:60])
    picture(9, 14, 40).save(photos / "9.png")
    return photos


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_models_in_the_box_are_whole_and_of_any_size() -> None:
    for name, channels in (("photographs", 3), ("photographs_gray", 1)):
        model = dualscore.load(name)
        assert model.any_size
        assert model.log_normalizer == 0.0
        assert model.image_shape is not None
        assert model.image_shape[0] == channels
        bits = model.bits_per_dim(torch.full((1, channels, 5, 31), 128 / 255))
        assert 0.0 < float(bits) < 8.0
    with pytest.raises(dualscore.errors.CheckpointError, match="no such"):
        dualscore.load("photograph")


def test_a_folder_of_that_name_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    picture(8, 8, 0).save("photographs/a.png")
    assert dualscore.load("photographs").any_size
    assert which([Path("photographs")], Path("out"), resize=False, normalize=False).path is None


def test_every_picture_is_scored_as_it_is_with_the_model_of_its_kind(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(folder), "--out", "out"]) == 0
    found = rows(Path("out"))
    assert [int(row["number"]) for row in found] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12]
    assert [row["model"] for row in found].count("photographs_gray") == 1
    models = {name: dualscore.load(name) for name in ("photographs", "photographs_gray")}
    for row in found:
        if row["file"].endswith((".tar/0000.png", ".tar/0001.png", ".tar/0002.png")):
            continue
        pixels = torch.from_numpy(np.array(Image.open(row["file"]))).permute(2, 0, 1)[None] / 255.0
        clean = pixels[:, :1] if row["model"] == "photographs_gray" else pixels
        bits = float(models[row["model"]].bits_per_dim(clean))
        assert float(row["bits_per_dim"]) == pytest.approx(bits, rel=DIGITS)
        assert (int(row["height"]), int(row["width"])) == pixels.shape[2:]
        assert float(row["bytes"]) == pytest.approx(bits * clean.numel() / 8, rel=DIGITS)
        with Image.open(Path("out", row["map"])) as heat:
            assert heat.size == pixels.shape[:1:-1]
    failed = list(read_rows(Path("out/failures.csv")))
    assert [row["number"] for row in failed] == [6, 11]
    summary = json.loads(Path("out/scores.json").read_text())
    assert (summary["images"], summary["failed"]) == (11, 2)
    mean = np.mean([float(row["bits_per_dim"]) for row in found])
    assert summary["mean_bits_per_dim"] == pytest.approx(mean, rel=1e-6)
    printed = capsys.readouterr().out
    assert "the mean of 11 images" in printed
    assert "images/s" in printed
    with Image.open("out/sheet.png") as sheet:
        assert sheet.width > 200


def test_noise_is_told_to_be_unlike_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save("flat.png")
    photograph("chelsea", 64).save("photo.png")
    assert main(["score", "noise.png", "flat.png", "photo.png", "--out", "out"]) == 0
    noisy, flat, photo = rows(Path("out"))
    assert (noisy["unlike"], noisy["percentile"]) == ("more bits than any", "0")
    assert (flat["unlike"], flat["percentile"]) == ("fewer bits than any", "100")
    assert float(noisy["bits_per_dim"]) > 8.0
    assert float(flat["bits_per_dim"]) < float(photo["bits_per_dim"]) < float(noisy["bits_per_dim"])


def test_bounds_and_dimensions_are_told_on_request(folder: Path) -> None:
    assert main(["score", str(folder / "0.png"), "--out", "out", "--bound", "3", "--psnr", "20"]) == 0
    (row,) = rows(Path("out"))
    clean = torch.from_numpy(np.array(Image.open(folder / "0.png"))).permute(2, 0, 1)[None] / 255.0
    assert float(row["bound"]) == pytest.approx(
        float(dualscore.load("photographs").bound(clean, 3)), rel=1e-5
    )
    assert float(row["effective_dimension"]) > 0


def test_parquet_has_the_rows_of_the_csv(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    assert main(["score", str(folder), "--out", "out", "--parquet", "--no-maps"]) == 0
    table = parquet.read_table("out/scores.parquet")
    assert tuple(table.schema.names) == COLUMNS
    assert [row["bits_per_dim"] for row in table.to_pylist()] == [
        float(row["bits_per_dim"]) for row in rows(Path("out"))
    ]
    assert not Path("out/maps").exists()


class Killed(BaseException):
    """As if the process were gone."""


def test_a_killed_command_goes_on_without_a_row_twice_or_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(folder), "--out", "whole"]) == 0
    scorer = whole_photographs.PhotographScorer.__call__
    for death in range(1, 6):
        calls = iter(range(1, 100))

        def dying(
            self: object, images: torch.Tensor, death: int = death, calls: Iterator[int] = calls
        ) -> object:
            if next(calls) > death % 3 + 1:
                raise Killed
            return scorer(self, images)  # type: ignore[arg-type]

        monkeypatch.setattr(whole_photographs.PhotographScorer, "__call__", dying)
        with pytest.raises(Killed):
            main(["score", str(folder), "--out", "out"])
        with Path("out/scores.csv").open("a") as file:  # the half of a row that did not fit
            file.write('77,"photos/half')
        if death > 2:
            break
    monkeypatch.setattr(whole_photographs.PhotographScorer, "__call__", scorer)
    assert main(["score", str(folder), "--out", "out"]) == 0
    assert "goes on after" in capsys.readouterr().out
    for name in ("scores.csv", "failures.csv"):
        assert Path("out", name).read_text() == Path("whole", name).read_text()
    assert sorted(os.listdir("out/maps")) == sorted(os.listdir("whole/maps"))


def test_no_row_names_a_map_that_was_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise Killed

    save = whole_photographs._save
    monkeypatch.setattr(whole_photographs, "_save", full)
    with pytest.raises(Killed):
        main(["score", str(folder), "--out", "out"])
    assert list(read_rows(Path("out/scores.csv"))) == []
    monkeypatch.setattr(whole_photographs, "_save", save)
    assert main(["score", str(folder), "--out", "out"]) == 0
    assert sorted(f"maps/{name}" for name in os.listdir("out/maps")) == sorted(
        row["map"] for row in rows(Path("out"))
    )


def test_other_options_or_another_model_begin_anew(folder: Path) -> None:
    files = RowFiles(folder, {"of": "one"})
    files.add([dict.fromkeys(COLUMNS, 0)], [])
    files.scores.close()
    assert RowFiles(folder, {"of": "one"}).done == 1
    assert RowFiles(folder, {"of": "another"}).done == 0
    finished = RowFiles(folder, {"of": "another"})
    finished.add([dict.fromkeys(COLUMNS, 0)], [dict.fromkeys(FAILED, 1)])
    finished.close()
    assert RowFiles(folder, {"of": "another"}).done == 0  # complete: the same command looks anew


def killed_after_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score a folder into `out` until two groups have been looked at."""
    scorer = whole_photographs.PhotographScorer.__call__
    calls = iter(range(100))

    def dying(self: object, images: torch.Tensor) -> object:
        if next(calls) == 2:
            raise Killed
        return scorer(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(whole_photographs.PhotographScorer, "__call__", dying)
    with pytest.raises(Killed):
        main(["score", str(folder), "--out", "out"])
    monkeypatch.setattr(whole_photographs.PhotographScorer, "__call__", scorer)


def test_rows_of_another_bound_are_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides a row is in the state: another `--bound`, other images, or another part begin anew."""
    killed_after_two(folder, monkeypatch)
    assert main(["score", str(folder), "--out", "out", "--bound", "1"]) == 0
    assert all(row["bound"] for row in rows(Path("out")))


def test_a_folder_that_has_changed_is_not_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_after_two(folder, monkeypatch)
    picture(8, 8, 50).save(folder / "00.png")
    assert main(["score", str(folder), "--out", "out"]) == 1
    assert "other images than when this began" in " ".join(capsys.readouterr().err.split())


def test_two_commands_do_not_write_into_one_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    files = RowFiles(Path("out"), {})
    assert main(["score", str(folder), "--out", "out"]) == 1
    assert "another process scores into it" in " ".join(capsys.readouterr().err.split())
    files.close()
    assert main(["score", str(folder), "--out", "out"]) == 0


def test_parts_of_different_scorings_are_not_put_together(folder: Path) -> None:
    for part in ("1/2", "2/2"):
        assert main(["score", str(folder), "--out", "out", "--part", part, "--no-maps"]) == 0
    assert Path("out/scores.csv").exists()
    assert main(["score", str(folder), "--out", "out", "--part", "1/2", "--bound", "1", "--no-maps"]) == 0
    assert not Path("out/scores.csv").exists() or not any(row["bound"] for row in rows(Path("out")))


def test_nothing_of_an_earlier_scoring_stays(folder: Path) -> None:
    assert main(["score", str(folder), "--out", "out", "--parquet"]) == 0
    assert main(["score", str(folder / "0.png"), "--out", "out"]) == 0
    assert not Path("out/scores.parquet").exists()
    assert len(os.listdir("out/maps")) == 1


def test_what_scoring_drew_is_no_photograph(folder: Path) -> None:
    assert main(["score", str(folder / "0.png"), "--out", str(folder / "scores")]) == 0
    assert main(["score", str(folder), "--out", "all"]) == 0
    assert not any("scores" in row["file"] for row in rows(Path("all")))


def test_a_file_has_a_line_of_progress_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "BETWEEN_LINES", 0.0)
    assert main(["score", str(folder), "--out", "all"]) == 0
    assert re.search(r"\d\d:\d\d:\d\d scored \d+ images", capsys.readouterr().out)


def test_a_gray_picture_by_the_model_of_colour_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "photographs", str(folder / "6.png"), "--out", "all"]) == 0
    assert "far too probable" in rows(Path("all"))[0]["unlike"]
    assert "far too probable" in " ".join(capsys.readouterr().out.split())


def test_a_misspelt_model_of_the_box_is_guessed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "photographs_grey", str(folder / "0.png")]) == 1
    assert "did you mean photographs_gray?" in " ".join(capsys.readouterr().err.split())


def test_failures_beyond_the_last_score_are_looked_at_again(tmp_path: Path) -> None:
    files = RowFiles(tmp_path, {})
    names = dict.fromkeys(COLUMNS, 5)
    files.add([names | {"number": 3, "file": 'with "quotes"\nand a line'}], [])
    files.add([], [{"number": 1, "file": "a", "reason": "b"}, {"number": 4, "file": "c", "reason": "d"}])
    files.scores.close()
    files.failures.close()
    again = RowFiles(tmp_path, {})
    assert again.done == 4
    assert [row["number"] for row in read_rows(tmp_path / "failures.csv")] == [1]
    assert [row["file"] for row in read_rows(tmp_path / "scores.csv")] == ['with "quotes"\nand a line']


def test_parts_together_are_the_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(folder), "--out", "whole"]) == 0
    for part in (3, 1):
        assert main(["score", str(folder), "--out", "out", "--part", f"{part}/3"]) == 0
        assert not Path("out/scores.csv").exists()
    assert "1 not finished" in capsys.readouterr().out
    assert main(["score", str(folder), "--out", "out", "--part", "2/3"]) == 0
    for mine, wanted in zip(rows(Path("out")), rows(Path("whole")), strict=True):
        assert Path("out", mine.pop("map")).is_file()
        del wanted["map"]
        assert float(mine.pop("bits_per_dim")) == pytest.approx(float(wanted.pop("bits_per_dim")), rel=DIGITS)
        assert float(mine.pop("bytes")) == pytest.approx(float(wanted.pop("bytes")), rel=DIGITS)
        assert mine == wanted
    assert Path("out/failures.csv").read_text() == Path("whole/failures.csv").read_text()


def test_two_processes_leave_what_one_does(folder: Path) -> None:
    command = [forking.sys.executable, "-m", "dualscore", "score", str(folder), "--out", "out"]
    done = forking.run(
        [*command, "--devices", "2", "--device", "cpu"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "the mean of 11 images" in done.stdout
    assert "left out: photos/5b.png" in done.stdout.replace(str(folder.parent) + "/", "")
    assert [int(row["number"]) for row in rows(Path("out"))] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "01/2"])
def test_parts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ScoreError, match="must be K/N"):
        part_of(text, 1)


def test_a_part_by_several_processes_is_refused() -> None:
    with pytest.raises(ScoreError, match="give one of them"):
        part_of("1/2", 2)


def test_words_are_a_model_and_images_or_images_alone(folder: Path) -> None:
    assert (
        which([Path("photographs_gray"), folder], Path("out"), resize=False, normalize=False).path is not None
    )
    assert which([folder, folder / "0.png"], Path("out"), resize=False, normalize=False).path is None
    assert which([folder / "0.png"], Path("out"), resize=False, normalize=False).path is None
    with pytest.raises(ScoreError, match="name images"):
        which([Path("photographs_gray")], Path("out"), resize=False, normalize=False)
    with pytest.raises(ScoreError, match="name a model first"):
        which([folder], Path("out"), resize=True, normalize=False)
    with pytest.raises(dualscore.errors.CheckpointError, match="no such"):
        which([Path("runs/nothing"), folder], Path("out"), resize=False, normalize=False)


def test_nothing_to_score_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.png").write_text("no picture")
    assert main(["score", "empty"]) == 1
    assert "empty holds no image" in capsys.readouterr().err
    assert main(["score", "broken.png"]) == 1
    assert "broken.png cannot be decoded" in capsys.readouterr().err
    assert main(["score", "mising.png"]) == 1
    assert "mising.png: no such file" in capsys.readouterr().err


def test_pictures_come_in_order_whatever_threads_decode_them(folder: Path) -> None:
    numbers = [p.number for p in pictures([folder], Path("out"), threads=3)]
    assert numbers == list(range(13))
    of_parts = [p.number for k in (1, 2, 3) for p in pictures([folder], Path("out"), part=(k, 3), threads=2)]
    assert sorted(of_parts) == numbers
    assert [p.number for p in pictures([folder], Path("out"), first=9)] == [9, 10, 11, 12]


def test_files_given_twice_are_scored_once(folder: Path) -> None:
    twice = list(pictures([folder / "0.png", folder / "0.png"], Path("out")))
    assert [bool(p.problem) for p in twice] == [False, True]
    assert "same file" in twice[1].problem
    given = [folder / "0.png", folder / "7.tar", folder / "0.png", folder / "7.tar"]
    mixed = list(pictures(given, Path("out")))
    assert [p.name for p in mixed if p.problem] == [str(folder / "0.png"), str(folder / "7.tar")]
    assert len(mixed) == 1 + 3 + 2


def test_a_cut_tar_is_told_and_what_was_read_of_it_stays(folder: Path) -> None:
    content = (folder / "7.tar").read_bytes()
    (folder / "7.tar").write_bytes(content[:1400])
    found = list(pictures([folder / "7.tar"], Path("out")))
    assert found[0].pixels is not None
    assert found[-1].pixels is None
    assert "cannot be read as a tar" in found[-1].problem


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 and of 3,000 pictures in a tar, the peaks of memory are alike, but for the network's."""
    code = """
import io, resource, sys, tarfile
from pathlib import Path
import numpy as np
from PIL import Image
from dualscore.cli import main
count = int(sys.argv[1])
with tarfile.open("shard.tar", "w") as tar:
    for number in range(count):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(file, "BMP")
        entry = tarfile.TarInfo(f"{number:06d}.bmp")
        entry.size = file.tell()
        file.seek(0)
        tar.addfile(entry, file)
import dualscore.scoring.whole_photographs as w
from dualscore.scoring.photograph_scores import PhotographScores
w.PhotographScorer.__call__ = lambda self, images: PhotographScores(
    {"width": [64] * len(images), "height": [64] * len(images), "model": ["m"] * len(images),
     "bits_per_dim": [4.0] * len(images), "bytes": [9.0] * len(images)},
    np.zeros((len(images), 64, 64)), [True] * len(images))
assert main(["score", "shard.tar", "--no-maps"]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for count in (200, 3000):
        place = tmp_path / str(count)
        place.mkdir()
        monkeypatch.chdir(place)
        done = run_code(code, str(count))
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("peak")[1]))
    assert peaks[1] - peaks[0] < 20_000  # kB; the pictures are 34 MB more


def test_maps_are_smoothed_within_the_picture() -> None:
    heat = np.zeros((4, 5))
    heat[0, 0] = 4.0
    assert smooth(heat)[0, 0] == pytest.approx(1.0)
    assert smooth(heat)[1, 1] == pytest.approx(4 / 9)
    assert smooth(np.full((1, 7), 2.5)) == pytest.approx(2.5)


def test_photographs_are_denoised_at_their_own_size_by_the_mean_alone(folder: Path) -> None:
    plan = ["denoise", "photographs", str(folder / "2.png"), "--psnr", "20", "--mean", "--out", "dn"]
    assert main([*plan, "--dry-run"]) == 0
    assert not Path("dn").exists()
    assert main(plan) == 0
    found = json.loads(Path("dn/samples.json").read_text())
    assert (found["method"], found["evaluations"], len(found["samples"])) == ("the mean", 1, 1)
    with Image.open("dn/samples/000000.png") as image:
        assert image.size == (7, 20)
    assert found["denoised_psnr"] > found["noisy_psnr"]
