"""Jobs on a real Slurm: stopped, requeued and finished to the same bits; arrays; failures."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slurm import Slurm, missing, running_slurm, wait_for
from workspace import ROOT, TINY, Workspace, copy_shards

pytestmark = pytest.mark.long

CPU = ["--gpus", "0", "--cpus", "1", "--time", "1:00:00"]
SETTINGS = [*TINY, "optim.warmup_steps=2", "optim.ema_steps=3", "data.workers=1"]


@pytest.fixture(scope="session")
def slurm_daemons() -> Iterator[Slurm]:
    """MUNGE and Slurm, started once and ended with the tests."""
    if absent := missing():
        pytest.skip(f"Slurm is not installed: no {', '.join(absent)} (Debian: slurm-wlm and munge)")
    with running_slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(slurm_daemons: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The cluster, with this package for its jobs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return slurm_daemons


def submit(workspace: Workspace, *arguments: str) -> str:
    """Submit; returns the job's id."""
    printed = workspace.run("submit", *arguments, *CPU)
    match = re.match(r"job (\d+) is submitted", printed)
    assert match, printed
    return match[1]


def log(folder: Path) -> str:
    """A run's log; there is only one, also after a restart."""
    files = list(folder.glob("slurm-*.out"))
    assert len(files) <= 1
    return files[0].read_text() if files else ""


def weights(workspace: Workspace, run: str) -> dict[str, torch.Tensor]:
    states: dict[str, torch.Tensor] = workspace.checkpoint(run)["state_dict"]
    return states


def test_a_stopped_job_of_two_tasks_is_requeued_and_ends_with_the_weights_of_one_left_alone(
    slurm: Slurm, workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.max_steps=120", "trainer.validate_every=40"]
    whole = submit(workspace, "patches_dual", *settings, "--name", "whole", "--tasks", "2")
    stopped = submit(workspace, "patches_dual", *settings, "--name", "stopped", "--tasks", "2")
    folder = workspace.folder / "runs/stopped"
    wait_for((folder / "checkpoints/last.ckpt").exists, "the first checkpoint")
    assert f"job {stopped} is in the queue for it" in workspace.fail(
        "submit", "patches_dual", *settings, "--name", "stopped", *CPU
    )
    slurm.run("scancel", "--signal=USR1", stopped)
    assert slurm.wait(stopped)["Restarts"] == "1"
    assert slurm.wait(whole)["Restarts"] == "0"
    told = log(folder)
    assert "2 × cpu" in told
    assert f"job {stopped} is requeued and goes on in runs/stopped" in told
    went_on = re.search(r"goes on from step (\d+)", told)
    assert went_on
    assert 40 <= int(went_on[1]) < 120
    assert "goes on from" not in log(workspace.folder / "runs/whole")
    first, second = weights(workspace, "whole"), weights(workspace, "stopped")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    steps = {}
    for run in ("whole", "stopped"):
        path = workspace.folder / "runs" / run
        events = EventAccumulator(str(path), {"scalars": 0}).Reload()
        steps[run] = [event.step for event in events.Scalars("train/loss")]
        assert workspace.report(run)["complete"]
    assert steps["stopped"] == steps["whole"] == list(range(120))


def test_a_sweep_is_an_array_and_a_stopped_task_is_requeued_alone(
    slurm: Slurm, workspace: Workspace, demo_shards: Path
) -> None:
    """The last task of an array has the array's own number: requeued by that, all would start anew."""
    sweeps = workspace.folder / "sweeps"
    sweeps.mkdir()
    (sweeps / "few.yaml").write_text(
        "experiment: patches_dual\nsettings: [trainer.validate_every=40]\n"
        "grid: {data.images: [10, 40], data.half: [B]}\n"
    )
    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.max_steps=120"]
    job = submit(workspace, "few", "--sweep", *settings)
    names = ["images10_halfB", "images40_halfB"]
    folders = [workspace.folder / "runs/few" / name for name in names]
    wait_for((folders[1] / "checkpoints/last.ckpt").exists, "the first checkpoint")
    assert f"job {job}_" in workspace.fail("submit", "few", "--sweep", *settings, *CPU)
    slurm.run("scancel", "--signal=USR1", f"{job}_1")
    for index, (folder, name) in enumerate(zip(folders, names, strict=True)):
        assert slurm.wait(f"{job}_{index}")["Restarts"] == str(index)
        told = log(folder)
        assert (folder / f"slurm-{job}_{index}.out").is_symlink()
        assert f"{(10, 40)[index]} training images" in told
        assert (f"job {job}_{index} is requeued" in told) == bool(index)
        assert workspace.report(f"few/{name}")["complete"]
        assert workspace.checkpoint(f"few/{name}")["global_step"] == 120


def test_a_job_that_fails_says_so_and_why(slurm: Slurm, workspace: Workspace, demo_shards: Path) -> None:
    """In folders with names that a shell, or sbatch, could take for something else."""
    data = workspace.folder / "da ta$(touch oops)'%j\"#"
    copy_shards(demo_shards, data)
    for shard in data.glob("train-*.tar"):
        content = shard.read_bytes()
        shard.write_bytes(bytes(3 * 1536) + content[3 * 1536 :])
    runs = "all%j 'my'; runs #\"$(touch oops)"
    settings = [*SETTINGS, f"data.path={data}", "trainer.max_steps=4"]
    job = submit(workspace, "patches_dual", *settings, "--runs", runs)
    ended = slurm.wait(job, "FAILED")
    assert (ended["Reason"], ended["ExitCode"]) == ("NonZeroExitCode", "1:0")
    told = log(workspace.folder / runs / "patches_dual")
    assert re.search(r"error: .*train-00000\d\.tar: ", told)
    assert f"job {job} failed with status 1" in told
    assert not list(workspace.folder.rglob("oops"))


def test_at_its_time_limit_a_job_is_requeued_and_once_cancelled_it_does_not_come_back(
    slurm: Slurm, workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.max_steps=40000", "trainer.validate_every=40"]
    job = submit(
        workspace, "patches_dual", *settings, "--sbatch=--time=2"
    )  # so it is told after 30 s at most
    folder = workspace.folder / "runs/patches_dual"
    again = " goes on from step "
    # And has made steps: cancelled while it starts, a run has nothing to save.
    wait_for(lambda: "/40,000" in log(folder).partition(again)[2], "the run going on after its time limit")
    told = log(folder)
    assert "stopped by SIGUSR1; saved" in told
    assert f"job {job} is requeued" in told
    slurm.run("scancel", job)
    restarts = slurm.wait(job, "CANCELLED")["Restarts"]
    assert int(restarts) >= 1
    wait_for(lambda: not slurm.run("squeue", "--noheader"), "an empty queue")
    assert slurm.job(job)["JobState"] == "CANCELLED"
    assert slurm.job(job)["Restarts"] == restarts
    assert "stopped by SIGTERM; saved" in log(folder)
    assert f"job {job} was ended from outside" in log(folder)
    # The folder is free again.
    assert "srun" in workspace.run("submit", "patches_dual", *settings, *CPU, "--dry-run")


def test_a_pre_empted_job_saves_gives_way_and_goes_on(
    slurm: Slurm, workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.max_steps=40000", "trainer.validate_every=40"]
    job = submit(workspace, "patches_dual", *settings, "--sbatch=--exclusive")
    folder = workspace.folder / "runs/patches_dual"
    wait_for((folder / "checkpoints/last.ckpt").exists, "the first checkpoint")
    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    slurm.wait(urgent.strip())
    again = " goes on from step "
    wait_for(lambda: "/40,000" in log(folder).partition(again)[2], "the run going on after the urgent job")
    slurm.run("scancel", job)
    assert slurm.wait(job, "CANCELLED")["Restarts"] == "1"
    assert "stopped by SIGTERM; saved" in log(folder)
