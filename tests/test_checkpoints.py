"""Nothing that happens to a run loses what it has learned: bits, disks, signals, other processes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import forking
from dualscore.errors import CheckpointError, ConfigError, StoppedError
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run, check_architecture
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.train_experiment import train
from dualscore.training.callbacks.checkpointing import AtomicCheckpointIO
from test_training import difference
from workspace import REFERENCE, ROOT, Workspace


def contents(path: Path) -> list[int]:
    """What older and newer checkpoints of a name hold, the newest first."""
    return [torch.load(p, weights_only=True)["step"] for p in Run(path.parent.parent).kept()]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    io = AtomicCheckpointIO(3, pytest.fail)
    for step in range(5):
        io.save_checkpoint({"step": step}, path)
        assert contents(path) == [*range(step, max(-1, step - 3), -1)]
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "last-1.ckpt", "last-2.ckpt"}


def test_a_full_disk_keeps_the_old_checkpoint_and_warns_at_every_attempt(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    warnings: list[str] = []
    io = AtomicCheckpointIO(2, warnings.append)
    io.save_checkpoint({"step": 1}, path)
    for attempt in (1, 2):
        path.with_name(".last.ckpt.tmp").symlink_to("/dev/full")
        io.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
        assert not io.written
        assert len(warnings) == attempt
        assert "last.ckpt: not written (No space left on device); training goes on" in warnings[-1]
    assert contents(path) == [1]
    io.save_checkpoint({"step": 3}, path)
    assert io.written
    assert contents(path) == [3, 1]


def test_no_flipped_bit_is_read_as_something_else(workspace: Workspace, demo_shards: Path) -> None:
    """Every byte of the file is either checked or means nothing."""
    workspace.run("train", "patches_dual", *REFERENCE, f"data.path={demo_shards}", "trainer.max_steps=3")
    path = workspace.folder / "runs/patches_dual/checkpoints/last.ckpt"
    good, whole = read_checkpoint(path), path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert difference(found["state_dict"], good["state_dict"]) == 0
            assert found["dualscore"] == good["dualscore"]
    assert refused > 30


def at(step: int, do: Any) -> Callback:
    """Do something after a step."""

    class Then(Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
            if trainer.global_step == step:
                do()

    return Then()


def tell_self(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


def losses(run: Run) -> list[tuple[int, float]]:
    """The training loss as TensorBoard shows it."""
    events = EventAccumulator(str(run.folder), {"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def run_of(workspace: Workspace, name: str) -> Run:
    return Run(workspace.folder / "runs" / name)


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGTERM), (3, signal.SIGUSR1), (5, signal.SIGTERM)])
def test_a_signal_stops_after_the_step_and_the_run_goes_on_bit_for_bit(
    workspace: Workspace, demo_shards: Path, whole: str, step: int, number: int
) -> None:
    """Between validations, and at the step of one."""
    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}"])
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"step {step}: stopped by {signal.Signals(number).name}; saved"):
        train(config, run_of(workspace, "stopped"), [at(step, tell_self(number))])
    assert signal.getsignal(number) is before
    assert workspace.checkpoint("stopped")["global_step"] == step
    train(config, run_of(workspace, "stopped"))
    states = [workspace.checkpoint(run) for run in (whole, "stopped")]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert difference(*(state[key] for state in states)) == 0
    assert states[0]["callbacks"]["Saving"] == states[1]["callbacks"]["Saving"]
    logged = [losses(run_of(workspace, run)) for run in (whole, "stopped")]
    assert logged[0] == logged[1]
    assert [entry[0] for entry in logged[0]] == list(range(9))
    assert workspace.report(whole)["bits_per_dim"] == workspace.report("stopped")["bits_per_dim"]


def test_a_stopped_run_tells_its_state_by_its_exit_status(workspace: Workspace, demo_shards: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dualscore",
        "train",
        "patches_dual",
        *REFERENCE,
        f"data.path={demo_shards}",
    ]
    command += ["trainer.max_steps=100000", "trainer.validate_every=100000"]
    process = forking.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    while "training images" not in line:
        line = process.stdout.readline()
        assert process.poll() is None
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == StoppedError.status == 75
    said = re.search(r"^step ([\d,]+): stopped by SIGTERM; saved, and the same command goes on$", error, re.M)
    assert said
    assert workspace.checkpoint("patches_dual")["global_step"] == int(said[1].replace(",", ""))
    assert "Traceback" not in error


def test_two_processes_stop_together_though_one_was_told(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*REFERENCE, f"data.path={demo_shards}", "trainer.devices=2", "trainer.max_steps=60"]
    settings += ["trainer.validate_every=60", "data.workers=0"]
    command = [sys.executable, "-m", "dualscore", "train", "patches_dual", *settings]

    def go(name: str) -> subprocess.Popen[str]:
        return forking.Popen([*command, "--name", name], stderr=subprocess.PIPE, text=True, env=environment)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}"}
    process = go("stopped")
    second = _child(process.pid)
    events = run_of(workspace, "stopped").folder
    while not any(path.stat().st_size > 10_000 for path in events.glob("events*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(second, signal.SIGUSR1)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 75, error
    assert "stopped by a signal to another device; saved" in error
    step = workspace.checkpoint("stopped")["global_step"]
    assert 0 < step < 60
    assert go("stopped").wait(timeout=200) == go("whole").wait(timeout=200) == 0
    whole, stopped = workspace.checkpoint("whole"), workspace.checkpoint("stopped")
    assert difference(whole["state_dict"], stopped["state_dict"]) == 0
    assert difference(whole["optimizer_states"], stopped["optimizer_states"]) == 0


def _child(parent: int) -> int:
    """The process that Lightning starts for the second device."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name, _, fields = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            if int(fields.split()[1]) == parent and name == "train":
                return int(folder.name)
        time.sleep(0.05)
    raise AssertionError("no second process")


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    workspace: Workspace, demo_shards: Path, whole: str
) -> None:
    settings = [*REFERENCE, f"data.path={demo_shards}"]
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=6", "--name", "hurt")
    run = run_of(workspace, "hurt")
    with run.last.open("r+b") as file:
        file.seek(run.last.stat().st_size // 2)
        file.write(b"\xff" * 64)
    printed = workspace.run("train", "patches_dual", *settings, "--name", "hurt")
    assert "last.ckpt: damaged" in printed
    assert "going on from last-1.ckpt, the one before" in printed
    assert "goes on from step 3" in printed
    assert (
        difference(workspace.checkpoint(whole)["state_dict"], workspace.checkpoint("hurt")["state_dict"]) == 0
    )
    assert (run.checkpoints / "last.damaged").exists()


def test_two_runs_in_one_folder_are_refused(workspace: Workspace, demo_shards: Path) -> None:
    settings = ["patches_dual", *REFERENCE, f"data.path={demo_shards}"]
    # POSIX locks are between processes.
    holder = forking.Popen(
        [sys.executable, "-c", "from dualscore.runs.folder import Run\n"
         "from pathlib import Path\nimport time\n"
         "with Run(Path('runs/patches_dual')).alone(): print(flush=True); time.sleep(100)"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    assert "trains there" in workspace.fail("train", *settings, "--dry-run")
    line = workspace.fail("train", *settings)
    assert f"runs/patches_dual: process {holder.pid} on " in line
    assert "trains there" in line
    holder.kill()
    holder.wait()
    workspace.run("train", *settings)


def test_a_run_goes_on_where_a_setting_did_not_exist_when_it_began(tmp_path: Path) -> None:
    """It then has the value that it had in effect; another is another run."""
    plain = to_plain(load_experiment("patches_dual", folder=ROOT / "experiments"))
    run = Run(tmp_path)
    run.write_config(plain | {"data": {k: v for k, v in plain["data"].items() if k != "images"}})
    run.last.parent.mkdir()
    run.last.touch()
    run.check_same(plain)
    with pytest.raises(ConfigError, match=r"data.images=0 \(now 5\)"):
        run.check_same(plain | {"data": plain["data"] | {"images": 5}})


def test_a_checkpoint_is_measured_where_a_setting_did_not_exist_when_it_was_trained() -> None:
    plain = to_plain(load_experiment("patches_dual", folder=ROOT / "experiments"))
    network = {k: v for k, v in plain["network"].items() if k != "contrast"}
    path = Path("best.ckpt")
    check_architecture(path, plain | {"network": network}, plain)
    with pytest.raises(CheckpointError, match=r"best.ckpt: .* network.contrast=False \(here True\)"):
        check_architecture(
            path, plain | {"network": network}, plain | {"network": network | {"contrast": True}}
        )
    with pytest.raises(
        CheckpointError, match=r"best.ckpt: its configuration does not belong to this version: .*depth"
    ):
        check_architecture(path, plain | {"network": network | {"depth": 3}}, plain)
