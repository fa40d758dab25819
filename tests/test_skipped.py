"""Training images that cannot be read: replaced, always in the same way, counted, and too many refused."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import forking
from dualscore.data.datamodule import Batch
from dualscore.data.epoch_plan import EpochPlan, evenly_placed
from dualscore.data.reader import EvenlySpacedBatches, TrainingBatches
from dualscore.data.shard_file import ShardFile, row_bytes
from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from workspace import ROOT, TINY, Workspace, copy_shards

ROW = row_bytes(3 * 16 * 16)
SETTINGS = [*TINY, "optim.warmup_steps=0", "trainer.validate_every=2", "data.shuffle_buffer=64"]


def flip(path: Path, entry: int, place: int = 300) -> None:
    """Change a byte of an entry's header."""
    with path.open("r+b") as file:
        file.seek(entry * ROW + place)
        old = file.read(1)
        file.seek(entry * ROW + place)
        file.write(bytes([old[0] ^ 4]))


def headers(path: Path) -> None:
    for entry in (0, 7, 100):
        flip(path, entry)


KEPT = 3000


def truncate(path: Path) -> None:
    os.truncate(path, min(KEPT * ROW, path.stat().st_size * 9 // 10) + 700)


def vanish(path: Path) -> None:
    path.unlink()


def epoch(
    folder: Path, manifest: Manifest, world: int = 1, workers: int = 0, start: int = 0, number: int = 0
) -> list[Batch]:
    """The epoch of few shards, so that damage counts."""
    plan = EpochPlan(manifest.splits["train"].shards[:4], 64, 8, max(1, workers), 0, number)
    parts = []
    for rank in range(world):
        streams = range(rank * 8 // world, (rank + 1) * 8 // world)
        dataset = TrainingBatches(folder, manifest.image_shape, plan, streams, 256, start)
        loader: Any = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
        parts.append(list(loader))
    return [
        Batch(*(torch.cat(x) for x in zip(*batches, strict=True))) for batches in zip(*parts, strict=True)
    ]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) > 0 and all(
        torch.equal(old, new) for x, y in zip(a, b, strict=True) for old, new in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("damage", [headers, truncate, vanish])
def test_lost_images_alone_are_replaced_by_good_ones(demo_shards: Path, tmp_path: Path, damage: Any) -> None:
    manifest = Manifest.load(demo_shards)
    listed = manifest.splits["train"].shards[:4]
    good = epoch(demo_shards, manifest)
    pixels = {
        p: image for b in good for p, image in zip(b.position.tolist(), b.image, strict=True)
    }  # a few images of an epoch are in no batch
    assert all((b.replaced == -1).all() for b in good)
    folder = copy_shards(demo_shards, tmp_path / "copy")
    damage(folder / listed[1].file)
    first, count = listed[0].images, listed[1].images
    lost = {
        headers: {first + 0, first + 7, first + 100},
        truncate: set(range(first + KEPT, first + count)),
        vanish: set(range(first, first + count)),
    }[damage]
    found = epoch(folder, manifest)
    seen: set[int] = set()
    for old, new in zip(good, found, strict=True):
        bad = torch.tensor([p in lost for p in old.position.tolist()])
        assert torch.equal(new.replaced >= 0, bad)
        assert torch.equal(new.replaced[bad], old.position[bad])
        assert torch.equal(new.position[~bad], old.position[~bad])
        assert torch.equal(new.image[~bad], old.image[~bad])
        for p, image in zip(new.position[bad].tolist(), new.image[bad], strict=True):
            assert p not in lost
            if p in pixels:
                assert torch.equal(image, pixels[p])
        seen |= set(new.replaced[bad].tolist())
    assert len(seen) >= 0.9 * len(lost)
    substitutes = torch.cat([b.position[b.replaced >= 0] for b in found])
    assert len(substitutes.unique()) > 0.7 * len(substitutes)  # not one image again and again

    assert same(found, epoch(folder, manifest, world=2))
    assert same(found[5:], epoch(folder, manifest, start=5))
    if damage is not headers:
        return
    assert same(epoch(folder, manifest, workers=2), epoch(folder, manifest, workers=2, world=2))
    other = torch.cat([b.position[b.replaced >= 0] for b in epoch(folder, manifest, number=1)])
    assert not set(other.tolist()) & lost


def test_a_shard_may_shrink_while_it_is_read(demo_shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(demo_shards)
    folder = copy_shards(demo_shards, tmp_path / "copy")
    plan = EpochPlan(manifest.splits["train"].shards[:2], 64, 1, 1, 0, 0)
    shard = plan.lane(0, 0)[0].shard
    batches = iter(TrainingBatches(folder, manifest.image_shape, plan, range(1), 16))
    assert (next(batches).replaced == -1).all()
    truncate(folder / shard.file)
    lost = torch.cat([batch.replaced for batch in batches])
    first = plan.shards.index(shard) * plan.shards[0].images
    assert set(lost[lost >= 0].tolist()) == set(range(first + KEPT, first + shard.images))


def test_validation_skips_nothing(demo_shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(demo_shards)
    shard = manifest.splits["val"].shards[0]
    for damage, complaint in (
        (headers, "entry 0 has a damaged header"),
        (truncate, "ends"),
        (vanish, "cannot be read"),
    ):
        folder = copy_shards(demo_shards, tmp_path / damage.__name__)
        damage(folder / shard.file)
        with pytest.raises(DataError, match=rf"{shard.file}: .*{complaint}"):
            list(EvenlySpacedBatches(folder, manifest.image_shape, (shard,), shard.images, 32))


def test_a_tar_of_another_kind_is_not_taken_for_a_damaged_one_of_ours(tmp_path: Path) -> None:
    import io
    import tarfile

    path = tmp_path / "train-000000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("README", *(f"{i:09d}.u8" for i in range(6))):
            entry = tarfile.TarInfo(name)
            entry.size = 25
            tar.addfile(entry, io.BytesIO(bytes([len(name)]) * 25))
    from dualscore.data.shards import Shard

    shard = Shard(path.name, 6, path.stat().st_size, "0" * 64)
    plan = EpochPlan((shard,), 6, 1, 1, 0, 0)
    (batch,) = TrainingBatches(tmp_path, (1, 5, 5), plan, range(1), 4)
    assert sorted(batch.position.tolist()) == list(range(6))
    assert (batch.replaced == -1).all()


def test_descriptors_are_given_back(demo_shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(demo_shards)
    folder = copy_shards(demo_shards, tmp_path / "copy")
    headers(folder / manifest.splits["train"].shards[0].file)
    epoch(folder, manifest)
    before = len(os.listdir("/dev/fd"))
    epoch(folder, manifest)
    with pytest.raises(DataError):
        ShardFile(tmp_path, manifest.splits["train"].shards[0], 768)
    assert len(os.listdir("/dev/fd")) == before


def scattered(shards: Path, to: Path) -> Path:
    """A copy in which every 16th image of the training shards cannot be read, but for those evaluated."""
    folder = copy_shards(shards, to)
    split = Manifest.load(folder).splits["train"]
    evaluated = {evenly_placed(index, 32, split.images) for index in range(32)}
    first = 0
    for shard in split.shards:
        for entry in range(5, shard.images, 16):
            if first + entry not in evaluated:
                flip(folder / shard.file, entry)
        first += shard.images
    return folder


def skipped(run: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars("data/skipped_images")]


def test_a_run_tells_counts_and_goes_on_to_the_same_bits(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the evaluation reads the undamaged images only.
    monkeypatch.setattr("dualscore.evaluation.fitted_yardsticks.FULL_COVARIANCE_LIMIT", 0)
    settings = [*SETTINGS, f"data.path={scattered(demo_shards, workspace.folder / 'data')}", "data.workers=1"]
    whole = workspace.run("train", "patches_dual", *settings, "trainer.max_steps=8", "--runs", "runs/whole")
    warned = re.findall(
        r"warning: \S+/(train-\d+\.tar): entry (\d+) cannot be read; other images take the place of (\d+)",
        whole,
    )
    assert warned
    assert len({file for file, _, _ in warned}) == len(warned)  # once a shard
    assert all(int(entry) % 16 == 5 and int(count) >= 1 for _, entry, count in warned)
    counts = skipped(workspace.folder / "runs/whole/patches_dual")
    assert [step for step, _ in counts] == list(range(8))
    assert 1 <= counts[-1][1] <= 8 * 16
    assert [c for _, c in counts] == sorted(c for _, c in counts)

    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=4", "--runs", "runs/parts")
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=8", "--runs", "runs/parts")
    a, b = workspace.checkpoint("whole/patches_dual"), workspace.checkpoint("parts/patches_dual")
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    assert a["callbacks"]["SkippedImages"] == b["callbacks"]["SkippedImages"]
    assert skipped(workspace.folder / "runs/parts/patches_dual") == counts

    # One fewer than there were is too few.
    limit = f"data.max_skipped={int(counts[-1][1]) - 1}"
    line = workspace.fail(
        "train", "patches_dual", *settings, limit, "trainer.max_steps=8", "--runs", "runs/c"
    )
    assert re.search(r"train-\d+\.tar: \d+ images cannot be read, \d+ in all in this epoch, more than", line)
    assert limit in line
    assert "make verify-data OUT=" in line


def test_a_limit_of_none_stops_before_a_step_is_made(workspace: Workspace, demo_shards: Path) -> None:
    folder = copy_shards(demo_shards, workspace.folder / "data")
    manifest = Manifest.load(folder)
    for shard in manifest.splits["train"].shards:
        for entry in range(shard.images):
            if entry % 2:
                flip(folder / shard.file, entry)
    line = workspace.fail(
        "train", "patches_dual", *SETTINGS, f"data.path={folder}", "data.max_skipped=0", "trainer.max_steps=2"
    )
    assert "more than data.max_skipped=0" in line
    assert not (workspace.folder / "runs/patches_dual/checkpoints").exists()


@pytest.mark.long
def test_two_devices_count_together(workspace: Workspace, demo_shards: Path) -> None:
    folder = scattered(demo_shards, workspace.folder / "data")
    settings = [*SETTINGS, f"data.path={folder}", "trainer.max_steps=4", "data.workers=1"]
    workspace.run("train", "patches_dual", *settings, "--runs", "runs/one")
    # Training bears what a figure must not: this one is of all training images.
    every = [*settings, "evaluate.train_images=27663"]
    evaluated = workspace.fail("evaluate", "patches_dual", *every, "--runs", "runs/one")
    assert "entry 5 has a damaged header" in evaluated
    command = [sys.executable, "-m", "dualscore", "train", "patches_dual", *settings, "trainer.devices=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def two(*more: str) -> "subprocess.CompletedProcess[str]":
        return forking.run([*command, *more], env=environment, capture_output=True, text=True, timeout=200)

    done = two("--runs", "runs/two")
    assert done.returncode == 0, done.stderr
    states = [
        workspace.checkpoint(f"{run}/patches_dual")["callbacks"]["SkippedImages"] for run in ("one", "two")
    ]
    assert states[0]["epoch"] == states[1]["epoch"]
    assert sorted(states[0]["positions"]) == sorted(states[1]["positions"])
    assert states[0]["positions"]
    assert done.stdout.count("warning: ") == len(set(re.findall(r"warning: (\S+tar)", done.stdout))) >= 1
    # Neither device alone reaches the limit.
    limit = len(states[0]["positions"]) - 1
    stopped = two("--runs", "runs/three", f"data.max_skipped={limit}")
    assert stopped.returncode == 1
    assert f"more than data.max_skipped={limit}" in stopped.stderr
