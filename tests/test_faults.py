"""Faults around a run: what people see, and that nothing is lost. docs/robustness.md lists them all."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import forking
from dualscore.errors import StoppedError
from dualscore.runs.folder import Run
from dualscore.settings.experiment import load_experiment
from dualscore.train_experiment import train
from test_study import declare
from test_training import difference
from torture import Journal, steps
from workspace import REFERENCE, ROOT, TINY, Workspace

SHORT = [
    *TINY,
    "optim.warmup_steps=2",
    "optim.ema_steps=3",
    "trainer.max_steps=6",
    "trainer.validate_every=3",
]


class InValidation(Callback):
    """Gets a signal while images are validated."""

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_during_validation_is_heeded_after_it(
    workspace: Workspace, demo_shards: Path, whole: str
) -> None:
    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}"])
    stopped = Run(Path("runs/stopped"))
    with pytest.raises(StoppedError, match="stopped by SIGUSR1; saved"):
        train(config, stopped, [InValidation()])
    assert workspace.checkpoint("stopped")["global_step"] == 3
    train(config, stopped)
    states = [workspace.checkpoint(run) for run in (whole, "stopped")]
    for key in ("state_dict", "optimizer_states"):
        assert difference(states[0][key], states[1][key]) == 0
    assert states[0]["callbacks"]["Saving"] == states[1]["callbacks"]["Saving"]


class Killed(Callback):
    """A signal in a step that is validated next, and then, in that validation, the end."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 9:
            raise RuntimeError("killed")


def test_a_validation_that_a_signal_announced_and_a_kill_ended_is_made_again(
    workspace: Workspace, demo_shards: Path, whole: str
) -> None:
    """In the last step of a run: what is saved before it would look complete."""
    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}"])
    killed = Run(Path("runs/killed"))
    with pytest.raises(RuntimeError, match="killed"):
        train(config, killed, [Killed()])
    assert workspace.checkpoint("killed")["global_step"] == 6
    train(config, killed)
    states = [workspace.checkpoint(run) for run in (whole, "killed")]
    assert difference(states[0]["state_dict"], states[1]["state_dict"]) == 0
    assert states[0]["callbacks"]["Saving"] == states[1]["callbacks"]["Saving"]
    assert workspace.report(whole)["bits_per_dim"] == workspace.report("killed")["bits_per_dim"]


def test_another_way_to_cut_batches_goes_on_where_it_was(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*SHORT, f"data.path={demo_shards}", "optim.method=adam", "trainer.precision=64-true"]
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=9", "--name", "whole")
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=3", "--name", "cut")
    for parts, until in ((2, 6), (4, 9)):
        more = [f"trainer.accumulate={parts}", f"trainer.max_steps={until}"]
        printed = workspace.run("train", "patches_dual", *settings, *more, "--name", "cut")
        assert f"step      {until}/{until}" in printed
    whole, cut = workspace.checkpoint("whole"), workspace.checkpoint("cut")
    assert cut["global_step"] == 9
    assert difference(whole["state_dict"], cut["state_dict"]) < 1e-9


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_lost_best_checkpoint_is_replaced_by_the_next_best(
    workspace: Workspace, demo_shards: Path, damage: str
) -> None:
    settings = ["train", "patches_dual", *SHORT, f"data.path={demo_shards}"]
    workspace.run(*settings, "trainer.max_steps=3")
    best = Run(Path("runs/patches_dual")).best
    if damage == "gone":
        best.unlink()
    else:
        content = bytearray(best.read_bytes())
        content[len(content) // 2] ^= 1
        best.write_bytes(content)
    printed = " ".join(workspace.run(*settings, "trainer.max_steps=3").split())
    assert "warning: runs/patches_dual/checkpoints/best.ckpt: " in printed
    assert "measuring the next best" in printed
    assert "evaluating runs/patches_dual/checkpoints/last.ckpt" in printed
    if damage == "gone":  # what follows knows that the best is not there
        workspace.run(*settings)
        assert best.exists()


def test_a_file_system_that_fails_for_a_moment_is_no_damage(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["train", "patches_dual", *SHORT, f"data.path={demo_shards}"]
    workspace.run(*settings, "trainer.max_steps=3")

    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", stale)
        assert "last.ckpt: cannot be read ([Errno 116] Stale file handle)" in workspace.fail(*settings)
    assert not list(Path("runs").rglob("*.damaged"))
    assert "goes on from step 3" in workspace.run(*settings)


def test_a_file_system_without_locks_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with Run(tmp_path).alone():
        pass


def test_a_refused_command_leaves_a_runs_status_alone(workspace: Workspace, demo_shards: Path) -> None:
    settings = ["train", "patches_dual", *SHORT, f"data.path={demo_shards}"]
    workspace.run(*settings)
    before = Path("runs/patches_dual/status.json").read_text()
    assert "the run was started with" in workspace.fail(*settings, "optim.lr=1")
    assert Path("runs/patches_dual/status.json").read_text() == before


@pytest.mark.long
def test_a_stopped_study_stops_its_run_and_goes_on(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, "evaluate.estimators=[paper,dequantized,bound]", f"data.path={demo_shards}"]
    declare(workspace.folder, settings=settings, variants={"recipe": []}, steps=100_000, measurements=1)
    study = forking.Popen(
        [sys.executable, "-m", "dualscore", "study", "mine"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Path("studies/mine/runs/recipe-seed0/status.json")
    deadline = time.monotonic() + 100
    while not (log.exists() and json.loads(log.read_text())["step"] > 0):
        assert study.poll() is None, study.stderr and study.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    study.send_signal(signal.SIGTERM)
    _, error = study.communicate(timeout=60)
    assert study.returncode == 75, error
    status = json.loads(log.read_text())
    assert status["state"] == "stopped"
    assert not Path(f"/proc/{status['process']}").exists()


def test_a_signal_during_the_evaluation_keeps_what_was_measured(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualscore.evaluation.session import Session

    original = Session.run

    def told(self: Session, stage: object) -> object:
        rows = original(self, stage)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        return rows

    config = load_experiment("patches_dual", [*SHORT, f"data.path={demo_shards}"])
    run = Run(Path("runs/patches_dual"))
    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", told)
        with pytest.raises(StoppedError, match="stopped by SIGTERM; the same command goes on"):
            train(config, run)
    assert json.loads((run.folder / "status.json").read_text())["state"] == "stopped"
    train(config, run)
    assert workspace.report("patches_dual")["complete"]


def test_a_disk_that_fills_up_keeps_the_run_going_and_the_last_checkpoint(
    workspace: Workspace, demo_shards: Path
) -> None:
    """No file may grow beyond a limit, as on a full disk: checkpoints do, and the log."""
    workspace.run("train", "patches_dual", *SHORT, f"data.path={demo_shards}", "trainer.max_steps=3")
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "from dualscore.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    settings = [*SHORT, f"data.path={demo_shards}", "trainer.max_steps=33", "trainer.validate_every=3"]
    done = forking.run(
        [sys.executable, "-c", limited, "train", "patches_dual", *settings],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(re.findall(r"last.ckpt: not written \(File too large\); training goes on", done.stdout)) == 10
    unlogged = done.stdout.count("the log is not written (File too large); training goes on, unlogged")
    # Not at each of 30 steps: a new file of the log may grow to the limit again, which a picture exceeds.
    assert 1 <= unlogged <= 10
    assert "step     33/33" in done.stdout
    assert (
        "error: runs/patches_dual/checkpoints/last.ckpt: the last weights could not be written" in done.stderr
    )
    assert workspace.checkpoint("patches_dual")["global_step"] == 3
    files = sorted(path.name for path in (workspace.folder / "runs/patches_dual/checkpoints").iterdir())
    assert files == ["best.ckpt", "last.ckpt"]
    settings.append("trainer.max_steps=9")
    assert "goes on from step 3" in workspace.run("train", "patches_dual", *settings)
    assert workspace.checkpoint("patches_dual")["global_step"] == 9


def test_a_folder_that_cannot_be_written_is_one_line(workspace: Workspace, demo_shards: Path) -> None:
    Path("runs").write_text("a file in the way")
    settings = ["train", "patches_dual", *SHORT, f"data.path={demo_shards}"]
    assert "runs" in workspace.fail(*settings)
    assert "/sys/kernel" in workspace.fail(*settings, "--runs", "/sys/kernel")  # read-only, for root as well


def test_another_number_of_devices_goes_on_with_the_same_images_and_says_so(
    workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*SHORT, f"data.path={demo_shards}", "optim.method=adam", "data.workers=0"]
    config = load_experiment("patches_dual", settings)
    train(config, Run(Path("runs/whole")), [Journal(Path("whole/journal"))])
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=3", "--name", "other")
    command = [sys.executable, "-m", "dualscore", "train", "patches_dual", *settings, "--name", "other"]
    done = forking.run(
        [*command, "trainer.devices=2"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "2 devices where there were 1: the same images, noise and order" in done.stdout
    one, two = workspace.checkpoint("whole"), workspace.checkpoint("other")
    assert difference(one["state_dict"], two["state_dict"]) < 1e-4
    assert two["dualscore"]["devices"] == 2
    back = load_experiment("patches_dual", [*settings, "trainer.max_steps=9"])
    train(back, Run(Path("runs/other")), [Journal(Path("other/journal"))])
    train(back, Run(Path("runs/whole")), [Journal(Path("whole/journal"))])
    made = {step: images for step, images in steps(Path("whole")).items() if step >= 6}
    assert made == steps(Path("other"))


@pytest.mark.parametrize("devices", [3, 5])
def test_a_number_of_devices_that_does_not_divide_the_streams_is_refused(
    workspace: Workspace, demo_shards: Path, devices: int
) -> None:
    line = workspace.fail(
        "train", "patches_dual", *SHORT, f"data.path={demo_shards}", f"trainer.devices={devices}"
    )
    assert "data.streams" in line
    assert "trainer.devices" in line


def test_the_list_of_faults_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs/robustness.md").read_text().splitlines() if "`test_" in line]
    named = [name for row in rows for name in re.findall(r"`(test_\w+)`", row)]
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(rows) >= 20
    assert set(named) <= defined, set(named) - defined
