"""The bench runs, and counts what the floor says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import photograph
from workspace import ROOT


@pytest.mark.long
def test_the_bench_measures_any_experiment(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    settings = ["data.size=16", "network.width=4", "data.batch_size=2"]
    done = subprocess.run(
        [sys.executable, "benchmarks/bench.py", "--repeats", "1", "--out", str(out), *settings],
        cwd=ROOT,
        env=os.environ
        | {"CXX": "no-such-compiler", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "of plain step" in done.stdout
    report = json.loads(out.read_text())
    flops = report["flops"]
    assert flops["step"] / flops["forward"] == pytest.approx(6, abs=0.1)
    assert flops["plain step"] / flops["forward"] == pytest.approx(6, abs=0.1)
    assert "compiled step" not in report["seconds"]
    assert report["settings"] == settings
    assert all(figure["low"] <= figure["median"] <= figure["high"] for figure in report["seconds"].values())
    assert report["peak_bytes_above_weights"]["step"] > 0
    assert set(report["parallel"]) == {"two processes, of twice the rate of one"}
    loader = report["loader"]
    assert loader["peak memory of an epoch over a set 4 times larger, of that over the set"] < 1.5
    assert loader["loader, images/s a core, shuffled"] > 0
    assert 0 < report["guards"]["all guards, of a step's time"] < 0.5
    for part in ("evaluation", "scoring"):
        assert 0 < report[part]["lowest"] <= report[part]["highest"]


@pytest.mark.long
def test_what_measuring_a_denoiser_costs_is_told() -> None:
    words = ["--pixels", "8", "--width", "8", "--images", "8", "--batch-size", "4"]
    assert _printed("denoiser_rate", words, ROOT).splitlines()[-1].endswith("of plain passes")


@pytest.mark.parametrize(
    ("module", "words", "last"),
    [
        (
            "boxed_figures",
            ["examples", "--model", "photographs_gray", "--bounds", "2", "--strata", "2"],
            "s of processor time each",
        ),
        ("photograph_rate", ["--images", "20", "--side", "32"], "MB"),
    ],
)
def test_what_the_boxed_models_reach_and_cost_is_told(
    module: str, words: list[str], last: str, tmp_path: Path
) -> None:
    (tmp_path / "examples").mkdir()
    for number in range(3):
        photograph("chelsea").crop((9 * number, 0, 9 * number + 140, 130)).save(
            tmp_path / f"examples/{number}.png"
        )
    printed = _printed(module, words, tmp_path)
    assert last in printed
    if module == "boxed_figures":
        assert [line.split()[0] for line in printed.splitlines()[-6:-1]] == [
            "16×16", "32×32", "64×64", "128×128", "whole"
        ]  # fmt: skip


def _printed(module: str, words: list[str], folder: Path) -> str:
    """What a benchmark prints that is called by its module, in a folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
