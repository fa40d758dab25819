"""What a run does when something in it goes wrong, and what people see of it."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import forking
from dualscore import train_experiment
from dualscore.runs import watchdog
from dualscore.runs.folder import Run
from dualscore.runs.run_status import State, Status
from dualscore.runs.watchdog import Watchdog
from dualscore.settings.experiment import load_experiment
from dualscore.training.callbacks import GradientHealth
from dualscore.training.callbacks.progress import Heartbeat, Throughput
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.optimizers import schedule
from test_training import difference
from workspace import ROOT, TINY, Workspace

SHORT = [
    *TINY,
    "optim.warmup_steps=2",
    "optim.ema_steps=3",
    "trainer.max_steps=6",
    "trainer.validate_every=3",
]


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> dict[int, torch.Tensor]:
    """Make the loss of some steps NaN; the weights that each step begins with, as training goes on."""
    weights: dict[int, torch.Tensor] = {}
    original = DualScoreModule.draw

    def draw(self: DualScoreModule, step: int, images: int) -> Any:
        weights[step] = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        draws = original(self, step, images)
        if step in steps:
            draws.noise[5] = torch.nan
            draws.noise_variance[5] = 0.125
        return draws

    monkeypatch.setattr(DualScoreModule, "draw", draw)
    return weights


@pytest.mark.parametrize(
    ("method", "at_once", "parts"),
    [("adam", True, 1), ("adam", False, 1), ("soap", True, 1), ("adam", True, 2)],
)
def test_a_step_that_is_not_finite_is_left_out_and_told(
    workspace: Workspace,
    demo_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    at_once: bool,
    parts: int,
) -> None:
    """`at_once` as on a CPU; otherwise as on a GPU, where nobody looks before something is logged."""
    monkeypatch.setattr(GradientHealth, "looks_at_once", staticmethod(lambda _: at_once))
    weights = poison(monkeypatch, {2, 4})
    settings = [*SHORT, f"data.path={demo_shards}", f"optim.method={method}", "trainer.log_every=3"]
    settings.append(f"trainer.accumulate={parts}")
    printed = " ".join(workspace.run("train", "patches_dual", *settings).split())
    still = {2, 4} | ({0} if method == "soap" else set())  # whose first step only looks
    assert {step for step in range(5) if torch.equal(weights[step], weights[step + 1])} == still
    for step in (2, 4):
        what = f"step {step}: the loss is not finite at noise variance t = 0.125: left out; 1 since"
        assert what in printed
    state = workspace.checkpoint("patches_dual")
    assert (
        difference(state["optimizer_states"], state["optimizer_states"]) == 0
    )  # which looks that all is finite
    events = EventAccumulator(str(workspace.folder / "runs/patches_dual"), {"scalars": 0})
    events.Reload()
    assert [e.value for e in events.Scalars("train/skipped_steps")] == [1, 2]
    status = Status.read(workspace.folder / "runs/patches_dual")
    assert status is not None
    assert (status.state, status.step, status.skipped_steps) == (State.complete, 6, 2)


@pytest.mark.parametrize("at_once", [True, False])
def test_too_many_of_them_stop_the_run(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(GradientHealth, "looks_at_once", staticmethod(lambda _: at_once))
    poison(monkeypatch, {3, 4, 5})
    settings = [*SHORT, f"data.path={demo_shards}", "optim.method=adam", "trainer.max_skipped=2"]
    line = workspace.fail("train", "patches_dual", *settings, status=3)
    assert "step 3: the loss is not finite at noise variance t = 0.125; 3 such steps since" in line
    assert "trainer.max_skipped=2" in line
    assert workspace.checkpoint("patches_dual")["global_step"] == 3
    status = Status.read(workspace.folder / "runs/patches_dual")
    assert status is not None
    assert status.state is State.failed
    assert "t = 0.125" in str(status.reason)


def pair(demo_shards: Path, fault: str, where: int, *settings: str) -> subprocess.CompletedProcess[str]:
    """Train on two devices, one of which has a fault."""
    chosen = [*SHORT, f"data.path={demo_shards}", "trainer.devices=2", "data.workers=0", *settings]
    return forking.run(
        [sys.executable, str(ROOT / "tests/faulty.py"), "train", "patches_dual", *chosen],
        env=os.environ
        | {"FAULT": fault, "FAULT_RANK": str(where), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_a_loss_that_is_not_finite_on_one_device_is_left_out_on_both(
    workspace: Workspace, demo_shards: Path
) -> None:
    done = pair(demo_shards, "nan", 1)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "step 3: the loss is not finite at noise variance t = 0.125: left out" in printed
    state = workspace.checkpoint("patches_dual")
    assert state["global_step"] == 6
    assert all(v.isfinite().all() for v in state["state_dict"].values())


@pytest.mark.parametrize(
    ("fault", "where", "said"),
    [
        ("die", 1, r"rank 1 \(process \d+ on \S+\).* ended"),
        ("hang", 1, r"no progress for 9 s: rank 1 \(process \d+ on \S+\): stuck in step 3, computing"),
        pytest.param(
            "freeze",
            1,
            r"no progress for 9 s: rank 1 \(process \d+ on \S+\): silent since step [0-3]",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_device_that_dies_or_hangs_ends_the_run_with_its_name(
    workspace: Workspace, demo_shards: Path, fault: str, where: int, said: str
) -> None:
    began = time.monotonic()
    done = pair(demo_shards, fault, where, "trainer.hang_minutes=0.15")
    assert time.monotonic() - began < 120
    assert done.returncode == 1, done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert "the same command goes on from the last checkpoint" in done.stderr
    status = Status.read(workspace.folder / "runs/patches_dual")
    assert status is not None
    assert status.state is State.failed
    assert re.search(said, str(status.reason))
    assert pair(demo_shards, "nothing", 0).returncode == 0
    assert workspace.checkpoint("patches_dual")["global_step"] == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_another_devices_watchdog_leaves_what_the_first_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    config = load_experiment("patches_dual", SHORT, ROOT / "experiments")
    first = Status(step=40, max_steps=90, images_per_second=3.5, bits_per_dim="4.2 ± 0.1")
    first.say(tmp_path)
    path = tmp_path / "status.json"
    before = json.loads(path.read_text()) | {"host": "elsewhere", "process": 7, "started": 9, "job": "5"}
    path.write_text(json.dumps(before))
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    # Where training began, which is all that another device than the first knows.
    status = first if rank == 0 else Status(step=10)
    train_experiment._watchdog(config, Run(tmp_path), status, (rank, 2)).end("no progress")
    after = json.loads(path.read_text())
    assert codes == [1]
    assert (after["state"], after["reason"]) == ("failed", "no progress")
    changed = {key for key in before if before[key] != after[key]}
    own = {"host", "process", "started", "job"} if rank == 0 else set()
    assert changed == {"state", "reason", "updated"} | own


def test_status_tells_what_runs_do(workspace: Workspace, demo_shards: Path) -> None:
    assert "no runs in runs" in workspace.run("status")
    workspace.run("train", "patches_dual", *SHORT, f"data.path={demo_shards}")
    path = workspace.folder / "runs/patches_dual/status.json"
    said = json.loads(path.read_text())
    assert said["state"] == "complete"
    assert said["step"] == said["max_steps"] == 6
    assert 0 <= said["stall"] < 1
    assert said["images_per_second"] > 0
    assert said["memory"] > 10**8
    line = workspace.run("status")
    assert re.search(r"patches_dual +complete +6/6 +[\d.]+ ± [\d.]+ ", line)
    other = path.parent.with_name("sweep") / "one"
    other.mkdir(parents=True)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"state": "training", "host": "elsewhere", "updated": time.time()}, "training"),
        ({"state": "training", "host": "elsewhere", "updated": time.time() - 1000}, "dead"),
        ({"state": "training", "process": os.getpid()}, "training"),
        ({"state": "training", "started": None}, "training"),  # by an older version
        ({"state": "training", "started": said["started"] - 1}, "dead"),  # the number is another's now
        ({"state": "training", "process": 2**22 + 1}, "dead"),  # more than Linux numbers
        ({"state": "failed", "reason": "the disk burns [/in/rack 3] with [red] light"}, "failed"),
        # A clock that jumped back: not dead, and not from the future.
        ({"state": "training", "host": "elsewhere", "updated": time.time() + 1e6}, "training"),
    ]
    for change, shown in changes:
        (other / "status.json").write_text(json.dumps(said | change))
        printed = workspace.run("status")
        assert re.search(rf"sweep/one +{shown}", printed), (change, printed)
        assert str(change.get("reason", "")) in printed
        assert "-" not in printed.split("sweep/one")[1].splitlines()[0]
    del said["started"]  # as before there was one
    (other / "status.json").write_text(json.dumps(said | {"state": "training"}))
    assert re.search(r"sweep/one +training", workspace.run("status"))
    for wrong in (
        {"step": None}, {"step": "5"}, {"memory": "x"}, {"updated": "x"}, {"reason": 3}, {"started": "x"},
    ):  # fmt: skip
        (other / "status.json").write_text(json.dumps(said | wrong))
        assert "sweep/one" not in workspace.run("status"), wrong
    (other / "status.json").write_text("{half of i")
    assert "sweep/one" not in workspace.run("status")


@pytest.mark.parametrize("guarded", [True, False])
def test_a_loss_spike_is_taken_back(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Weights that jump in one step; the run goes on from the checkpoint's, at the schedule's rates."""
    original = DualScoreModule.draw
    jumped = []
    rates: dict[int, list[float]] = {}

    def draw(self: DualScoreModule, step: int, images: int) -> Any:
        rates[step] = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        if step == 4 and not jumped:
            jumped.append(step)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.mul_(30.0)
        return original(self, step, images)

    monkeypatch.setattr(DualScoreModule, "draw", draw)
    settings = [
        *SHORT,
        f"data.path={demo_shards}",
        "optim.method=adam",
        "trainer.max_steps=9",
        "optim.ema_steps=0",
        "optim.schedule=cosine",
    ]
    optim = load_experiment("patches_dual", settings, ROOT / "experiments").optim
    spike = ["trainer.spike=20"] if guarded else []
    printed = " ".join(workspace.run("train", "patches_dual", *settings, *spike).split())
    said = re.search(
        r"step 5: the loss jumped to [\d.e+]+, [\d.]+ times its lowest: back to the weights of step 3",
        printed,
    )
    assert bool(said) == guarded
    factor = schedule(optim, 9)
    for step in range(9):
        planned = [optim.lr * factor(step), optim.lr * optim.offset_lr_factor * factor(step)]
        assert rates[step] == pytest.approx(planned, rel=1e-12), step
    events = EventAccumulator(str(workspace.folder / "runs/patches_dual"), {"scalars": 0})
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses[4] > 20 * losses[3]
    assert (losses[5] < 2 * losses[3]) == guarded


def test_a_spike_that_comes_back_ends_the_run(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DualScoreModule.draw

    def draw(self: DualScoreModule, step: int, images: int) -> Any:
        if step >= 4:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.mul_(30.0)
        return original(self, step, images)

    monkeypatch.setattr(DualScoreModule, "draw", draw)
    settings = [*SHORT, f"data.path={demo_shards}", "optim.method=adam", "trainer.max_steps=12"]
    settings += ["trainer.validate_every=12", "trainer.spike=20"]
    line = workspace.fail("train", "patches_dual", *settings, status=3)
    assert "step 5: the loss jumped to" in line
    assert "no checkpoint is there yet" in line


def test_a_file_system_that_hangs_does_not_keep_the_watchdog_from_its_duty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(watchdog, "write_aside", lambda *_, **__: time.sleep(1000))
    monkeypatch.setattr(watchdog, "NEAR", 0.5)
    with watchdog.Watchdog(tmp_path, 0, 1, 1.0, lambda _: ended.set()):
        assert ended.wait(30)


def test_every_batch_of_a_validation_is_progress(tmp_path: Path) -> None:
    """So that one which takes longer than the watchdog waits is no hang."""
    ended: list[str] = []
    heartbeat = Heartbeat(Run(tmp_path), Status(), Throughput(16), None)  # type: ignore[arg-type]
    with Watchdog(tmp_path, 0, 1, 3.0, ended.append) as heartbeat.watchdog:
        for _ in range(10):
            time.sleep(0.5)
            heartbeat.on_validation_batch_end(SimpleNamespace(global_step=7))  # type: ignore[arg-type]
        assert ended == []
        assert heartbeat.watchdog.place.step == 7
