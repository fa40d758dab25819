"""What users get wrong: one line naming the file and the way out, a non-zero exit, nothing half-written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dualscore.errors import TrainingError
from dualscore.training.callbacks import GradientHealth
from dualscore.training.lightning_module import DualScoreModule
from workspace import TINY, Workspace, copy_shards

SETTINGS = [*TINY, "optim.warmup_steps=0", "trainer.max_steps=2"]


def test_an_experiment_without_data_says_which_command_makes_it(workspace: Workspace) -> None:
    for experiment, recipe in {
        "imagenet64_dual": "make data DATASET=imagenet64 SRC=… OUT=data/imagenet64",
        "cifar10_dual": "make data DATASET=cifar10 SRC=… OUT=data/cifar10",
        "patches_dual": "make data DATASET=demo SIZE=16 OUT=data/demo16",
    }.items():
        line = workspace.fail("train", experiment)
        assert "manifest.json is missing" in line
        assert recipe in line
    assert not (workspace.folder / "runs").exists()


def test_an_unknown_experiment_lists_the_others(workspace: Workspace) -> None:
    line = workspace.fail("train", "imagenet64")
    assert "there are: bsds16_causal, bsds16_gray" in line
    assert workspace.fail("evaluate", "nothing").count("\n") == 0


def test_a_wrong_setting_is_named_before_anything_is_built(workspace: Workspace, demo_shards: Path) -> None:
    line = workspace.fail("train", "patches_dual", f"data.path={demo_shards}", "noise.t_min=-1")
    assert "noise.t_min: must be > 0" in line
    assert "not -1.0" in line
    assert not (workspace.folder / "runs").exists()


def copy(shards: Path, to: Path) -> Path:
    copy_shards(shards, to)
    return to


def test_a_truncated_shard_stops_with_its_name(workspace: Workspace, demo_shards: Path) -> None:
    folder = copy(demo_shards, workspace.folder / "data")
    shard = folder / "train-000003.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    line = workspace.fail("train", "patches_dual", *SETTINGS, f"data.path={folder}")
    assert "train-000003.tar has 5000 bytes instead of" in line
    assert not (workspace.folder / "runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_damaged_inside_stops_with_its_name(
    workspace: Workspace, demo_shards: Path, workers: int
) -> None:
    """Same size, so only reading finds it; in a loader process too."""
    folder = copy(demo_shards, workspace.folder / "data")
    for shard in folder.glob("train-*.tar"):
        content = shard.read_bytes()
        shard.write_bytes(bytes(3 * 1536) + content[3 * 1536 :])
    line = workspace.fail(
        "train", "patches_dual", *SETTINGS, f"data.path={folder}", f"data.workers={workers}"
    )
    assert re.search(r"error: \S+/train-00000\d.tar: ", line)
    assert "make verify-data" in line
    assert not (workspace.folder / "runs/patches_dual/checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m["splits"]["train"]["shards"][0].update(images=7), "splits.train.images"),
        (lambda m: m.update(image_shape=[3, 32, 32]), "spectrum.npy"),
        (lambda m: m.update(dataset="cifar10"), "the data set is 'cifar10'"),
        (lambda m: m.pop("statistics"), "statistics is missing"),
        (lambda m: m["splits"]["val"]["shards"].pop(), "splits.val.images"),
        (lambda m: m.update(format="other-2"), "format"),
    ],
)
def test_a_manifest_that_disagrees_is_refused(
    workspace: Workspace, demo_shards: Path, change: Any, complaint: str
) -> None:
    folder = copy(demo_shards, workspace.folder / "data")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    line = workspace.fail("train", "patches_dual", *SETTINGS, f"data.path={folder}")
    assert complaint in line
    assert "data/" in line


def test_images_of_another_size_are_refused(workspace: Workspace, demo_shards: Path) -> None:
    line = workspace.fail("train", "patches_dual", *SETTINGS, f"data.path={demo_shards}", "data.size=32")
    assert "images are 3×16×16, but the experiment patches_dual is for 1×32×32" in line


def test_the_two_imagenet64_releases_are_not_taken_for_each_other(
    workspace: Workspace, demo_shards: Path
) -> None:
    folder = copy(demo_shards, workspace.folder / "data")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"dataset": "demo"', '"dataset": "imagenet64_png"'))
    line = workspace.fail("train", "imagenet64_dual", *SETTINGS, f"data.path={folder}")
    assert "the data set is 'imagenet64_png'" in line
    assert "cannot be compared" in line


@pytest.mark.parametrize("at_once", [True, False])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """On a GPU it is noticed later, but before a checkpoint is written, and says the same."""
    monkeypatch.setattr(GradientHealth, "looks_at_once", staticmethod(lambda _: at_once))
    original = DualScoreModule.draw

    def poisoned(self: DualScoreModule, step: int, images: int) -> Any:
        draws = original(self, step, images)
        if step == 2:
            draws.noise[5] = torch.nan
            draws.noise_variance[5] = 0.125
        return draws

    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.max_steps=6", "trainer.validate_every=2"]
    settings += [
        "trainer.log_every=6",
        "trainer.max_skipped=0",
        "optim.method=adam",
    ]  # so that a bad step is made, and another after it
    monkeypatch.setattr(DualScoreModule, "draw", poisoned)
    line = workspace.fail("train", "patches_dual", *settings, status=3)
    assert "step 2: the loss is not finite at noise variance t = 0.125;" in line
    kept = workspace.checkpoint("patches_dual")
    assert kept["global_step"] == 2
    assert all(v.isfinite().all() for v in kept["state_dict"].values())
    monkeypatch.setattr(DualScoreModule, "draw", original)
    assert "goes on from step 2" in workspace.run("train", "patches_dual", *settings)


def test_a_checkpoint_of_another_architecture_is_refused(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}"]
    workspace.run("train", "patches_dual", *settings)
    checkpoint = "runs/patches_dual/checkpoints/best.ckpt"
    line = workspace.fail(
        "evaluate", "patches_dual", *settings, "network.width=8", "--checkpoint", checkpoint
    )
    assert f"{checkpoint}: a checkpoint of another architecture" in line
    assert "network.width=4 (here 8)" in line
    line = workspace.fail("train", "patches_dual", *settings, "network.width=8")
    assert "the run was started with network.width=4 (now 8)" in line
    assert "beside it with --fresh" in line
    for name in ("../x", "/tmp/x", ".", "a/../../x"):
        assert f"--name {name}: must be the name of a folder" in workspace.fail(
            "train", "patches_dual", "--name", name
        )
    workspace.run("evaluate", "patches_dual", *settings, "--checkpoint", checkpoint)


def test_a_run_that_never_began_does_not_bind_the_next(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was trained with the first settings, so corrected ones may follow."""

    def broken(*_: object) -> None:
        raise TrainingError("does not fit into memory")

    settings = [*SETTINGS, f"data.path={demo_shards}"]
    with monkeypatch.context() as patch:
        patch.setattr(DualScoreModule, "draw", broken)
        assert "does not fit" in workspace.fail("train", "patches_dual", *settings)
    workspace.run("train", "patches_dual", *settings, "data.batch_size=8")


def test_fresh_in_a_group_of_tasks_asks_for_a_name(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    line = workspace.fail("train", "patches_dual", "trainer.devices=2", "--fresh")
    assert "DUALSCORE_RUN=runs/NAME-2" in line


def test_evaluating_what_was_never_trained_says_so(workspace: Workspace, demo_shards: Path) -> None:
    line = workspace.fail("evaluate", "patches_dual", f"data.path={demo_shards}")
    assert (
        "runs/patches_dual/checkpoints/best.ckpt: no such checkpoint; patches_dual is not trained yet" in line
    )
    Path("x.ckpt").write_bytes(b"PK\x03\x04")
    line = workspace.fail("evaluate", "patches_dual", f"data.path={demo_shards}", "--checkpoint", "x.ckpt")
    assert "x.ckpt" in line


def test_a_half_written_last_checkpoint_is_named(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}"]
    workspace.run("train", "patches_dual", *settings)
    last = Path("runs/patches_dual/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:1000])
    assert "last.ckpt: damaged" in workspace.fail("train", "patches_dual", *settings)


def test_overrides_may_stand_anywhere_but_options_must_exist(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}"]
    workspace.run("train", "patches_dual", *settings[:3], "--runs", "elsewhere", *settings[3:])
    assert Path("elsewhere/patches_dual/evaluation.json").exists()
    for stranger in ("--fast", "max_steps"):
        with pytest.raises(SystemExit):
            workspace.run("train", "patches_dual", "--runs", "x", stranger)
