"""Dry runs: every command says what it would do, and leaves the folder as it is, byte for byte."""

import hashlib
import inspect
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.cli import main as prepare
from dualscore.cli import main
from dualscore.commands import ALL, add_all
from dualscore.commands.parser import Commands
from test_released import DATA
from workspace import ROOT, TINY, Workspace, copy_shards, given_by_make


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below one, with what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


@pytest.fixture
def place(trained_demo: Path, demo_shards: Path, workspace: Workspace) -> Workspace:
    """A trained run, its data, images of its size, studies and sweeps."""
    folder = workspace.folder
    shutil.copytree(trained_demo / "runs", folder / "runs")
    copy_shards(demo_shards, folder / "data/demo16")
    for name in ("studies", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    random = np.random.default_rng(0)
    for kind in ("in", "out"):
        (folder / kind).mkdir()
        for number in range(40):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    Image.fromarray(np.full((3, 3), 9, np.uint8)).save(folder / "gray.png")
    workspace.run("compress", "photographs_gray", "gray.png", "--out", "coded.dual", "--levels", "2")
    return workspace


RUN = "runs/patches_dual"
COMMANDS = {
    "train": (
        ["patches_dual", "--name", "new"],
        ["900 steps of 64", "27,663 training", "3×16×16, read as gray", "runs/new (new)", "(its file says"],
    ),
    "evaluate": (["patches_dual"], [f"{RUN}/config.yaml", "step 2", "nothing was written"]),
    "score": (
        [RUN, "in"],
        ["40 image files in in", "others are left out", "1 batch of at most 128", "scores (new): scores.csv"],
    ),
    "noise": (
        [RUN, "in"],
        ["patches_dual, step 2", "15 evaluations an image", "noise (new): noise_"],
    ),
    "measure": ([RUN, "in"], ["patches_dual, step 2", "16×16", "up to 66 evaluations", "measured (new)"]),
    "ood": ([RUN, "--in", "in", "--out", "out"], ["25 network evaluations for each of 80 images"]),
    "compress": (
        [RUN, "in", "--levels", "7"],
        [
            "patches_dual, step 2",
            "16 gradients of the energy for each image or tile",
            "images.dual, images.dual.json",
        ],
    ),
    "decompress": (["coded.dual"], ["1 images; 2 of 2 parts are as they were written", "photographs_gray"]),
    "figures": ([RUN, "--only", "3", "table1"], ["3, table1", f"{RUN}/figures (new)"]),
    "sample": ([RUN, "--count", "3"], ["3 samples by metropolis", "399 network evaluations for each"]),
    "denoise": (
        [RUN, "in/1.png", "--count", "2", "--psnr", "20"],
        ["2 samples", "20 dB, variance 0.01 pixel²"],
    ),
    "inpaint": ([RUN, "in/1.png"], ["the middle: 64 of 256 pixels are hidden"]),
    "export": ([RUN], ["model (new): model.safetensors", "goes in; percentiles among 64 images"]),
    "convert": ([str(DATA / "energy_small.pth.tar"), "--images", "in"], ["log Z from 40 images"]),
    "study": (["long"], ["1200 s a run", "one after another; 0 are there"]),
    "submit": (
        ["patches_dual", "--gpus", "0", "--name", "new"],
        ["#SBATCH --nodes=1", "dualscore.task"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_tells_and_writes_nothing(command: str, place: Workspace) -> None:
    arguments, said = COMMANDS[command]
    before = tree(place.folder)
    printed = place.run(command, *arguments, "--dry-run")
    assert tree(place.folder) == before
    for words in said:
        assert words in printed, printed


def test_the_time_of_a_shortened_run_is_not_that_of_the_whole(place: Workspace) -> None:
    shorter = ["--name", "new", "trainer.max_steps=40", "trainer.validate_every=40", "optim.warmup_steps=5"]
    printed = place.run("train", "patches_dual", *shorter, "--dry-run")
    assert "shown after the first steps; of all its 900 steps the experiment's file says: measured" in printed


def test_every_command_that_writes_has_a_dry_run() -> None:
    import argparse

    added: Commands = argparse.ArgumentParser().add_subparsers()
    add_all(added)
    planned = {function.__name__ for function in ALL if "dry_run" in inspect.signature(function).parameters}
    assert planned == set(COMMANDS)
    # Those only read; data hands over to data_prep, which has dry runs of its own.
    assert set(added.choices) - planned == {"status", "experiments", "completion", "data"}


def test_a_study_counts_the_runs_that_are_there(place: Workspace) -> None:
    from dualscore.study.run_variants import run_folder
    from dualscore.study.variants import STUDIES, load_study

    study = load_study("long")
    (place.folder / "studies").unlink()  # the shipped ones are found all the same
    best = run_folder(STUDIES / study.name, study.variants[0], study.seeds[0]).best
    best.parent.mkdir(parents=True)
    best.touch()
    assert "; 1 are there or begun" in place.run("study", "long", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["train", "patches_dual"], "the run was started with data.batch_size=16 (now 64)"),
        (["train", "patches_dual", "--name", "new", "data.path=nowhere"], "nowhere/manifest.json is missing"),
        (["evaluate", "patches_dual", "--name", "other"], "no such checkpoint; there are: runs/patches_dual"),
        (["score", RUN, "in", "nothing.png"], "nothing.png: no such file or folder"),
        (["score", RUN, "empty"], "empty: holds no image"),
        (["score", RUN, "in", "--psnr", "200"], "--psnr 200: must be between"),
        (["ood", RUN, "--in", "in", "--out", "in"], "hold the same files"),
        (["ood", RUN, "--in", "in", "--out", "ood"], "--results is where results go"),
        (["denoise", RUN, "in/1.png", "--psnr", "90"], "--psnr 90: must be between"),
        (["inpaint", RUN, "in/1.png", "--mask", "no.png"], "no.png: no such file"),
        (["export", RUN, "--out", "in"], "in: holds something else than a model"),
        (["convert", f"{RUN}/checkpoints/best.ckpt", "--no-normalizer"], "not a checkpoint in the released"),
        (["figures", RUN, "--only", "tabel1"], "did you mean table1?"),
        (
            ["train", "patches_dual", "--name", "new", "data.path=s3://b"],
            "must be a folder, http://…, https://… or",
        ),
        (
            ["train", "patches_dual", "--name", "new", "data.path=pipe:cat"],
            "the command needs {}, for the file",
        ),
        (["sample", RUN, "--out", "in/1.png"], "in/1.png: is a file, and the results need a folder"),
        (["score", RUN, "in", "--out", "in/1.png/new"], "in/1.png: is a file"),
        (["sample", "runs/patches"], "no such checkpoint; did you mean patches_dual?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_dry_run_finds_what_would_stop_the_command(
    arguments: list[str], error: str, place: Workspace
) -> None:
    (place.folder / "empty").mkdir()
    before = tree(place.folder)
    assert error in place.fail(*arguments, "--dry-run")
    assert tree(place.folder) == before


def test_a_dry_run_ends_as_the_command_would_with_a_denoiser(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, f"data.path={demo_shards}", "trainer.max_steps=1", "trainer.validate_every=1"]
    told = workspace.run("train", "patches_denoiser", *settings, "optim.warmup_steps=0")
    run = "runs/patches_denoiser"
    assert "dualscore score" not in told  # which it cannot
    (following,) = re.findall(r"next +dualscore (sample .*)", told)
    assert following == f"sample {run} --method langevin"
    workspace.run(*following.split(), "--count", "1", "--steps", "2")
    Image.new("L", (16, 16)).save("one.png")
    for command, status in ((["sample", run], 1), (["score", run, "one.png", "--workers", "0"], 4)):
        line = workspace.fail(*command, "--dry-run", status=status)
        assert line == workspace.fail(*command, status=status)
        assert "a denoiser" in line


def test_general_options_before_data_are_handed_over(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(workspace.folder)
    for words in (["--quiet", "--dry-run", "data"], ["data", "--dry-run", "--quiet"]):
        assert main([*words, "build", "demo", "--out", "new"]) == 0
        assert "new (new): shards" in capsys.readouterr().out
    assert tree(workspace.folder) == before


def test_data_preparation_has_dry_runs(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(place.folder)
    assert prepare(["build", "demo", "--out", "new", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "27,663 images of 3×16×16" in printed
    assert "new (new): shards" in printed
    assert prepare(["--dry-run", "verify", "data/demo16"]) == 0
    assert "32,569 images in 24 shards" in capsys.readouterr().out
    assert prepare(["build", "demo", "--out", "in", "--dry-run"]) == 1
    assert "in is not empty" in capsys.readouterr().err
    assert tree(place.folder) == before


def test_a_script_can_be_looked_at_without_the_data(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "imagenet64_dual", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("#!/bin/bash")
    assert "a real submission would be refused: data/imagenet64/manifest.json is missing" in printed.err
    assert "manifest.json is missing" in workspace.fail("submit", "imagenet64_dual")


def _make(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run make in a folder with an environment that is there already: this one; returns what it printed."""
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    for name in (
        "Makefile",
        "requirements.lock",
        "pyproject.toml",
        "setup.py",
        "experiments",
        "studies",
        "sweeps",
    ):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}/src:{ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / ".venv/.installed").touch()
    found = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == status, found.stderr
    return found.stderr if status else found.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "not there yet; make prepares it"),
        (["submit", "EXP=imagenet64_dual"], "#SBATCH"),
        (["data", "DATASET=demo", "SIZE=16"], "27,663 images"),
        (["test"], "would run: .venv/bin/python -m pytest"),
        (["tensorboard"], "would run: .venv/bin/tensorboard --load_fast=false --logdir runs"),
        (["bench"], "would run: .venv/bin/python benchmarks/bench.py"),
        (["gpu-report", "MINUTES=5"], "would run: .venv/bin/python -m benchmarks.gpu --minutes 5"),
        (["torture"], "would run: env PYTHONPATH="),
        (["faults", "COMBINATIONS=20"], "tests/faults.py --combinations 20"),
        (["lint"], "would run: .venv/bin/mypy"),
        (["clean"], "would run: rm -rf .venv"),
        (["status"], "no runs in runs; make train EXP=… starts one"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_make_has_dry_runs_of_every_target(arguments: list[str], said: str, tmp_path: Path) -> None:
    _make(tmp_path, "help")
    before = tree(tmp_path)
    assert said in _make(tmp_path, *arguments, "DRY=1")
    assert tree(tmp_path).keys() == before.keys()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["score"], "which images with IMAGES=…"),
        (["score", "CKPT=runs/a b"], "which images with IMAGES=…"),
        (["denoise", "IMAGES=a b"], "which model with CKPT=…"),
        (["measure", "CKPT=m"], "which images with IMAGES=…"),
        (["ood", "CKPT=m", "OUT=b"], "which images of the model's kind with IN=…"),
        (["ood", "IN='a b'"], "which model with CKPT=… and which other images with OUT=…"),
        (["sample"], "which model with CKPT=…"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_make_names_what_is_missing_alone(arguments: list[str], error: str, tmp_path: Path) -> None:
    assert f"error: say {error}\n" in _make(tmp_path, *arguments, status=2)


def test_make_refuses_a_port_before_it_says_where_to_look(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = _make(tmp_path, "tensorboard", f"PORT={port}", status=2)
    assert f"error: port {port} is taken, perhaps by another make tensorboard" in said
    assert f"PORT={port + 1}" in said
    for wrong in ("abc", "0", "65536"):
        said = _make(tmp_path, "tensorboard", f"PORT={wrong}", status=2)
        assert f"error: PORT={wrong}: must be a number up to 65535" in said


def test_a_dry_run_looks_at_nothing_elsewhere(workspace: Workspace) -> None:
    """What it fetched would fill the cache; and the place may not be reachable from here."""
    shown = workspace.run("train", "patches_dual", "data.path=http://localhost:1/demo", "--dry-run")
    assert "http://localhost:1/demo" in shown
    assert not (workspace.folder / "data").exists()


def test_make_hands_options_on_to_every_command(tmp_path: Path) -> None:
    given = ["CKPT=m", "IMAGES=i", "IN=i", "OUT=o", "FILE=f", "STUDY=s", "DATASET=demo", "ARGS=--mark me"]
    for name in {function.__name__ for function in ALL} - {"completion"} | {"verify-data"}:
        found = given_by_make(tmp_path, name, *given)
        assert found[-2:] == ["--mark", "me"], (name, found)
