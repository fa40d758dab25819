"""Reading: every image where and when the plan says, from any number of devices and loader processes."""

import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dualscore.data.datamodule import Batch, Batching
from dualscore.data.epoch_plan import EpochPlan, cut, evenly_placed, share, whole
from dualscore.data.reader import EvenlySpacedBatches, ShardDataModule, TrainingBatches
from dualscore.data.shard_file import ShardFile
from dualscore.data.shards import Manifest, Shard
from dualscore.errors import DataError

shard_lists = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def shards(counts: list[int]) -> tuple[Shard, ...]:
    return tuple(Shard(f"train-{i:06d}.tar", n, 1, "0" * 64) for i, n in enumerate(counts))


@given(shard_lists, st.integers(0, 400), st.integers(0, 400))
def test_cutting_keeps_exactly_the_range(counts: list[int], a: int, b: int) -> None:
    listed = shards(counts)
    laid_out = [(s.file, i) for s in listed for i in range(s.images)]
    pieces = cut(whole(listed), min(a, b), max(a, b))
    assert [(p.shard.file, i) for p in pieces for i in range(p.start, p.stop)] == laid_out[
        min(a, b) : max(a, b)
    ]


@given(st.integers(0, 1000), st.integers(1, 16))
def test_shares_cover_everything_once(total: int, parts: int) -> None:
    ranges = [share(total, part, parts) for part in range(parts)]
    assert [i for low, high in ranges for i in range(low, high)] == list(range(total))
    sizes = [high - low for low, high in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 500), st.data())
def test_the_chosen_images_are_as_many_as_asked_and_evenly_spaced(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    places = [evenly_placed(index, count, total) for index in range(count)]
    assert len(set(places)) == count
    assert 0 <= places[0] <= places[-1] == total - 1
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(shard_lists, st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_lanes_hold_every_image_once_an_epoch(
    counts: list[int], streams: int, groups: int, epoch: int
) -> None:
    plan = EpochPlan(shards(counts), streams, streams, groups, seed=0, epoch=epoch)
    lanes = [plan.lane(g, s) for g in range(groups) for s in range(streams)]
    seen = Counter((p.shard.file, i) for lane in lanes for p in lane for i in range(p.start, p.stop))
    assert set(seen.values()) <= {1}
    assert sum(seen.values()) == sum(counts)
    # No lane is too short for the epoch.
    for lane in lanes:
        assert sum(p.stop - p.start for p in lane) >= plan.batches // groups


def test_shards_are_permuted_anew_each_epoch_and_repeatably() -> None:
    listed = shards([5] * 20)

    def order(epoch: int, seed: int = 0) -> list[str]:
        plan = EpochPlan(listed, 1, 1, 1, seed, epoch)
        return [piece.shard.file for piece in plan.lane(0, 0)]

    assert sorted(order(0)) == [s.file for s in listed]
    assert order(0) == order(0)
    assert len({tuple(order(e)) for e in range(5)} | {tuple(order(0, seed=1))}) == 6


def epoch(folder: Path, world: int = 1, workers: int = 0, start: int = 0, number: int = 0) -> list[Batch]:
    """An epoch's global batches, read as `world` devices would."""
    manifest = Manifest.load(folder)
    plan = EpochPlan(manifest.splits["train"].shards, 64, 8, max(1, workers), 0, number)
    each = 8 // world
    parts = []
    for rank in range(world):
        streams = range(rank * each, (rank + 1) * each)
        dataset = TrainingBatches(folder, manifest.image_shape, plan, streams, 512, start)
        loader: Any = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
        parts.append(list(loader))
    assert len({len(part) for part in parts}) == 1
    return [
        Batch(*(torch.cat(x) for x in zip(*batches, strict=True))) for batches in zip(*parts, strict=True)
    ]


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.image, y.image) and torch.equal(x.position, y.position)
        for x, y in zip(a, b, strict=True)
    )


def test_an_epoch_is_the_same_on_any_number_of_devices(demo_shards: Path) -> None:
    alone = epoch(demo_shards)
    assert equal(alone, epoch(demo_shards, world=2))
    assert equal(alone, epoch(demo_shards, world=8))
    places = torch.cat([b.position for b in alone])
    images = Manifest.load(demo_shards).splits["train"].images
    assert len(places) == len(places.unique()) == images // 64 * 64
    assert not equal(alone, epoch(demo_shards, number=1))


def test_loader_processes_share_an_epoch_on_any_number_of_devices(demo_shards: Path) -> None:
    alone = epoch(demo_shards, workers=2)
    assert equal(alone, epoch(demo_shards, world=2, workers=2))
    places = torch.cat([b.position for b in alone])
    assert len(places) == len(places.unique())


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (100, 0), (101, 2), (430, 2)])
def test_an_epoch_goes_on_from_any_batch(demo_shards: Path, start: int, workers: int) -> None:
    assert equal(
        epoch(demo_shards, workers=workers)[start:], epoch(demo_shards, workers=workers, start=start)
    )


def test_images_are_shuffled_and_are_the_stored_ones(demo_shards: Path) -> None:
    batches = epoch(demo_shards)[:20]
    places = torch.cat([b.position for b in batches])
    assert (
        float(torch.corrcoef(torch.stack([places.double(), torch.arange(len(places)).double()]))[0, 1]) < 0.9
    )
    assert float((places[1:] - places[:-1] == 1).double().mean()) < 0.05
    manifest = Manifest.load(demo_shards)
    stored = {}
    for shard in manifest.splits["train"].shards:
        with tarfile.open(demo_shards / shard.file) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                stored[int(member.name.removesuffix(".u8"))] = file.read()
    for batch in batches[::5]:
        for image, position in zip(batch.image, batch.position.tolist(), strict=True):
            assert image.numpy().tobytes() == stored[position]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2100), st.integers(1, 5), st.integers(0, 2), st.integers(1, 200))
def test_validation_sees_each_chosen_image_once(
    demo_shards: Path, count: int, world: int, workers: int, batch_size: int
) -> None:
    """Over all devices; loader processes are imitated, since starting real ones takes long."""
    manifest = Manifest.load(demo_shards)
    listed = manifest.splits["val"].shards
    seen: list[int] = []
    for rank in range(world):
        part = (rank, world)
        dataset = EvenlySpacedBatches(
            demo_shards, manifest.image_shape, listed, count, batch_size, part, workers
        )
        batches = 0
        for worker in range(max(1, workers)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "dualscore.data.reader.worker_place", lambda worker=worker: (worker, max(1, workers))
                )
                for batch in dataset:
                    batches += 1
                    seen += batch.position.tolist()
        assert batches == len(dataset)
    total = manifest.splits["val"].images
    most = min(count, total)
    assert sorted(seen) == [evenly_placed(index, most, total) for index in range(most)]


@given(st.integers(1, 10_000), st.data())
def test_no_device_is_left_without_a_chosen_image(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    world = data.draw(st.integers(1, min(count, 16)))
    sizes = [
        len(EvenlySpacedBatches(Path(), (1, 1, 1), shards([total]), count, 1, (rank, world)))
        for rank in range(world)
    ]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_validation_through_real_loader_processes(demo_shards: Path) -> None:
    module = _datamodule(demo_shards, workers=2)
    batches = list(module.val_dataloader())
    assert len(batches) == len(module.val_dataloader())
    assert torch.cat([b.ordinal for b in batches]).sort().values.tolist() == list(range(100))


def _datamodule(folder: Path, **changes: int) -> ShardDataModule:
    batching = replace(Batching(64, 8, 0, 1, 0, 100, 32), **changes)
    return ShardDataModule(folder, Manifest.load(folder), batching, shuffle_buffer=64)


def test_the_loader_tells_and_takes_its_place(demo_shards: Path) -> None:
    loader = _datamodule(demo_shards).train_dataloader()
    first = [batch for batch, _ in zip(loader, range(5), strict=False)]
    place = loader.state_dict()
    assert place["epoch"] == 0
    later = _datamodule(demo_shards).train_dataloader()
    later.load_state_dict({"epoch": 0, "consumed": 3})
    assert torch.equal(next(iter(later)).position, first[3].position)
    later.load_state_dict({"epoch": 0, "consumed": len(later)})
    following = next(iter(later))
    assert later.state_dict() == {"epoch": 1, "consumed": 1}
    assert not torch.equal(following.position, first[0].position)


def test_memory_is_bounded_by_the_shuffle_buffer(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more images have been read than were yielded and fit into the buffers, at any time of the epoch."""
    read = 0
    original = ShardFile.read

    def counted(self: ShardFile, first: int, rows: list[NDArray[np.uint8]]) -> None:
        nonlocal read
        read += len(rows)
        original(self, first, rows)

    monkeypatch.setattr(ShardFile, "read", counted)
    manifest = Manifest.load(demo_shards)
    plan = EpochPlan(manifest.splits["train"].shards, 64, 8, 1, 0, 0)
    excess = []
    for number, _ in enumerate(
        TrainingBatches(demo_shards, manifest.image_shape, plan, range(8), 512), start=1
    ):
        excess.append(read - 64 * number)
    # webdataset's buffer reads two images for each it gives until it is full.
    assert max(excess) <= 512 + 64


def test_too_few_images_for_a_batch_is_an_error(demo_shards: Path) -> None:
    with pytest.raises(DataError, match=r"too few for data\.batch_size=32000"):
        _datamodule(demo_shards, batch_size=32000)


def _damaged(folder: Path, out: Path, damage: str) -> tuple[Path, Manifest]:
    """A copy of a data set whose first validation shard is damaged after the manifest was checked."""
    out.mkdir()
    manifest = Manifest.load(folder)
    first = manifest.splits["val"].shards[0]
    for file in (*folder.glob("*.tar"), *folder.glob("*.npy")):
        (out / file.name).write_bytes(file.read_bytes())
    path = out / first.file
    content = path.read_bytes()
    changed = {
        "missing": b"",
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "inside a header": content[: 1536 * 3 + 100],
        "not a tar": b"<html>" + content[6:],
        "another size": content.replace(b"00001400", b"00000600", 1),
        "fewer images": content[: 1536 * 3] + bytes(10240),
        "other entries": content.replace(b"000000000.u8\0", b"000000000.txt", 1),
    }[damage]
    path.write_bytes(changed)
    if damage == "missing":
        path.unlink()
    return out, manifest


@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "empty",
        "truncated",
        "inside a header",
        "not a tar",
        "another size",
        "fewer images",
        "other entries",
    ],
)
def test_a_damaged_shard_is_named(demo_shards: Path, tmp_path: Path, damage: str) -> None:
    folder, manifest = _damaged(demo_shards, tmp_path / "copy", damage)
    dataset = EvenlySpacedBatches(folder, manifest.image_shape, manifest.splits["val"].shards, 10**6, 100)
    with pytest.raises(DataError, match="make verify-data") as caught:
        list(dataset)
    assert "val-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
