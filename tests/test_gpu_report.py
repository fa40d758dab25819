"""The GPU report: all of it at toy size on the CPU, interrupted and gone on; and what it counts on a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

import forking
from benchmarks.gpu.jobs import read_rows, run_jobs
from benchmarks.gpu.page import compare, read_report, shown
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.shards import SIDE, textures
from benchmarks.gpu.training import Watch
from dualscore.runs.folder import Run
from dualscore.settings.experiment import load_experiment
from dualscore.train_experiment import train
from dualscore.training.callbacks import GradientHealth
from workspace import ROOT, TINY, Workspace

NO_COMPILER = {"CXX": "no-such-compiler"}  # compiled steps are compared with eager ones in test_speed.py


def _command(out: Path, *more: str) -> "subprocess.Popen[str]":
    return forking.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(out), *more],
        cwd=ROOT,
        env=os.environ | NO_COMPILER | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_report_is_made_by_going_on_after_an_interruption(tmp_path: Path) -> None:
    out = tmp_path / "report"
    process = _command(out)
    kept = out / "parts" / "parity.json"
    while len(read_rows(kept)) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = read_rows(kept)
    second = _command(out)
    said, _ = second.communicate(timeout=800)
    assert second.returncode == 0, said
    report = json.loads((out / "report.json").read_text())["parts"]
    assert {name: part["state"] for name, part in report.items()} == {
        name: "nothing to measure here" if name == "again" else "complete" for name in PARTS
    }, said
    rows = {name: part["rows"] for name, part in report.items()}
    assert before.items() <= rows["parity"].items()  # what there was is not measured again
    assert rows["parity"]["energy, eager, fp64"]["energy"] < 1e-9
    assert rows["parity"]["energy, eager, fp32"]["∂_t U"] < 1e-4
    assert rows["steps"]["imagenet64_dual, plain, fp32"]["gradient, relative error"] < 1e-4
    assert rows["resuming"]["killed and resumed, eager"]["killed and resumed"] == "bitwise equal"
    assert rows["running"]["make train EXP=imagenet64_dual"]["state"] == "complete"
    assert len(rows["levels"]) == 2 * 3 * 3
    assert rows["several"].keys() == {"1 devices", "2 devices"}
    page = (out / "report.md").read_text()
    assert "a full run of imagenet64_dual takes" in page
    for picture in ("steps.png", "levels.png"):
        assert f"]({picture})" in page
        assert (out / picture).stat().st_size > 10_000

    same = compare(out, read_report(out / "report.json"), read_report(out / "report.json")).read_text()
    ratios = [line.rsplit("|", 2)[1].strip() for line in same.splitlines() if line.startswith("| ")]
    assert len(ratios) > 100
    assert {ratio for ratio in ratios if ratio} - {"first/second", "---"} == {"1.00"}


def test_a_short_report_says_which_parts_are_missing(tmp_path: Path) -> None:
    process = _command(tmp_path, "--minutes", "0.1", "--only", "machine", "steps")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "the same command goes on with it" in (tmp_path / "report.md").read_text()


def test_another_machines_report_must_be_there(tmp_path: Path) -> None:
    process = _command(tmp_path, "--compare", str(tmp_path / "none.json"))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "none.json: there is no such file; give another machine's report.json" in said
    (tmp_path / "other.json").write_text('{"parts": []}')
    with pytest.raises(ValueError, match=r"other\.json: not a report\.json that make gpu-report wrote"):
        read_report(tmp_path / "other.json")


def test_a_job_that_fails_is_named_passed_over_and_tried_again(tmp_path: Path) -> None:
    path, tried = tmp_path / "rows.json", Counter[str]()

    def job(name: str) -> dict[str, Any]:
        tried[name] += 1
        if name == "second" and tried[name] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory\nlong advice")
        return {"ms": 1.5}

    jobs = {name: lambda name=name: job(name) for name in ("first", "second", "third")}
    run_jobs(jobs, path)
    assert read_rows(path)["second"]["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert read_rows(path)["third"]["ms"] == 1.5
    run_jobs(jobs, path)
    assert tried == {"first": 1, "second": 2, "third": 1}
    assert read_rows(path)["second"]["ms"] == 1.5


def test_results_cut_off_in_writing_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"first": {"ms": 1')
    assert read_rows(path) == {}


def test_textures_have_the_spectrum_of_photographs_and_colours_that_go_together() -> None:
    images = textures(200, seed=0).reshape(-1, 3, SIDE, SIDE) / 255.0
    gray = images.mean(axis=1) - images.mean(axis=(1, 2, 3))[:, None, None]
    power = (np.abs(np.fft.fft2(gray)) ** 2).mean(axis=0)
    radius = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None, :])
    middle = (radius > 0.05) & (radius < 0.3)
    slope = np.polyfit(np.log(radius[middle]), np.log(power[middle]), 1)[0]
    assert -2.2 < slope < -1.7  # amplitudes as 1/f, but for what was cut off
    red, green = images[:, 0].ravel(), images[:, 1].ravel()
    assert np.corrcoef(red, green)[0, 1] > 0.7


@pytest.mark.parametrize(("value", "expected"), [
    (None, ""), (1234.5, "1,234"), (0.012345, "0.0123"), (20000, "20,000"), ("a|b", "a/b"),
])  # fmt: skip
def test_figures_have_three_digits(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_waits_are_counted_between_two_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch says on a GPU, said here by hand."""
    modes: list[str] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)
    watch, trainer = Watch(first=2, last=4), lightning.Trainer.__new__(lightning.Trainer)
    for step in range(6):
        monkeypatch.setattr(lightning.Trainer, "global_step", step)
        watch.on_train_batch_start(trainer)
        if modes == ["warn"]:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        monkeypatch.setattr(lightning.Trainer, "global_step", step + 1)
        watch.on_train_batch_end(trainer)
    assert modes == ["warn", "default"]
    assert list(watch.waits.values()) == [2]
    assert "test_gpu_report.py" in next(iter(watch.waits))


class _Looks(TorchDispatchMode):
    """Notes where a number is taken out of a tensor, which on a GPU waits for all that was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            self.places[f"{Path(frames[-2].filename).name}:{frames[-2].name}"] += 1
        return func(*args, **(kwargs or {}))


class _Look(Callback):
    """Looks at steps that nothing is logged in."""

    def __init__(self) -> None:
        self.mode, self.steps = _Looks(), 0

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 3:
            self.mode.__enter__()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 6:
            self.mode.__exit__(None, None, None)
            self.steps = 3


def test_no_number_is_taken_out_of_a_tensor_in_a_step(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, under Adam; what is looked at there besides lies on the CPU."""
    monkeypatch.setattr(GradientHealth, "looks_at_once", staticmethod(lambda _: False))
    settings = [
        *TINY, f"data.path={demo_shards}", "optim.method=adam", "optim.warmup_steps=1", "optim.ema_steps=3",
        "trainer.max_steps=8", "trainer.log_every=8", "trainer.validate_every=8",
    ]  # fmt: skip
    look = _Look()
    train(load_experiment("patches_dual", settings), Run(workspace.folder / "run"), [look])
    assert look.steps == 3
    # The objective looks at t on a CPU only; the average's count is kept there.
    allowed = {"objective.py:dual_score_matching", "lightning_module.py:_follow"}
    assert {place: n for place, n in look.mode.places.items() if place not in allowed} == {}
