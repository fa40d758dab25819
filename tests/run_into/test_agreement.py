"""Several devices stop together within two steps, however long a step takes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import forking
from dualscore.settings.experiment import load_experiment
from dualscore.train_experiment import train
from dualscore.training.callbacks.checkpointing import Vote
from test_checkpoints import at, run_of
from workspace import REFERENCE, ROOT, Workspace

RANK = """
import os, sys, time
import torch
from dualscore.training.callbacks.checkpointing import Vote
rank = int(sys.argv[1])
place = f"file://{os.getcwd()}/meet"
torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
vote, told = Vote(), int(sys.argv[2])
for step in range(40):
    time.sleep(0.02 * rank)
    torch.distributed.all_reduce(torch.zeros(3))
    if vote.heard(rank == 1 and step >= told, torch.device("cpu")):
        print(step)
        break
time.sleep(1)
"""
SLOW = """
import sys, time
from dualscore.training.lightning_module import DualScoreModule
original, begun = DualScoreModule.training_step, []
def slow(self, *rest):
    begun.append(0)
    time.sleep(2.0 if len(begun) > 3 else 0.0)
    return original(self, *rest)
DualScoreModule.training_step = slow
from dualscore.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("told", [0, 1, 7])
def test_all_hear_at_the_same_step_one_after_it_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    monkeypatch.chdir(tmp_path)
    ranks = [
        forking.Popen(
            [sys.executable, "-c", RANK, str(rank), str(told)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=60)[0].strip() for rank in ranks] == [str(told + 1)] * 2


def test_nobody_has_said_anything_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Work:
        def wait(self) -> bool:
            return True

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: Work())
    vote, cpu = Vote(), torch.device("cpu")
    assert [vote.heard(asked, cpu) for asked in (True, False, False)] == [False, True, False]


@pytest.mark.parametrize(("notice", "told"), [("1", 1), ("90", 0)])
def test_a_job_told_too_late_for_its_steps_says_so_once(
    workspace: Workspace,
    demo_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    notice: str,
    told: int,
) -> None:
    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}", "trainer.max_steps=6"])
    monkeypatch.setenv("DUALSCORE_NOTICE", notice)
    slow = [at(step, lambda: time.sleep(1.2)) for step in (1, 2, 4)]
    train(config, run_of(workspace, "slow"), slow)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"but this job is told {notice} s before its end") == told


@pytest.mark.parametrize(("notice", "told"), [("1", 1), ("90", 0)])
def test_so_does_one_whose_validations_take_longer(
    workspace: Workspace,
    demo_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    notice: str,
    told: int,
) -> None:
    class Slow(Callback):
        def on_validation_batch_start(self, *_: object) -> None:
            time.sleep(1.2)

    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}", "trainer.max_steps=6"])
    monkeypatch.setenv("DUALSCORE_NOTICE", notice)
    train(config, run_of(workspace, "slow"), [Slow()])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"but this job is told {notice} s before its end") == told
    assert said.count("use a smaller trainer.validate_images") == told


def test_two_devices_whose_steps_became_slow_stop_within_two(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*REFERENCE, f"data.path={demo_shards}", "trainer.devices=2", "data.workers=0"]
    settings += ["trainer.max_steps=60", "trainer.validate_every=60"]
    script = workspace.folder / "slow.py"
    script.write_text(SLOW)
    process = forking.Popen(
        [sys.executable, str(script), "train", "patches_dual", *settings],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    events = workspace.folder / "runs/patches_dual"
    while not any(path.stat().st_size > 6_000 for path in events.glob("events*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    began = time.monotonic()
    _, error = process.communicate(timeout=100)
    assert process.returncode == 75, error
    assert time.monotonic() - began < 9 + 5  # three steps at most, and leaving
    assert 0 < workspace.checkpoint("patches_dual")["global_step"] < 10
