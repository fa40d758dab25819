"""Training on some of the images: the first N or the last N, few of them as often as a batch needs."""

import hashlib
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualscore.assemble import build_datamodule, find_data, training_images
from dualscore.data.epoch_plan import EpochPlan
from dualscore.data.shards import Shard
from dualscore.errors import ConfigError, DataError
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment
from workspace import ROOT, TINY, Workspace


def shards(counts: list[int]) -> tuple[Shard, ...]:
    return tuple(Shard(f"train-{i:06d}.tar", n, 1, "0" * 64) for i, n in enumerate(counts))


def config(folder: Path, *settings: str) -> ExperimentConfig:
    return load_experiment("patches_dual", [*TINY, f"data.path={folder}", *settings], ROOT / "experiments")


def test_all_images_come_in_the_order_they_always_came_in() -> None:
    """Recorded before there was a choice of images: runs of that time go on to the same bits."""
    listed, order = shards([7, 30, 1, 12, 25, 40]), []
    for epoch in range(3):
        plan = EpochPlan(listed, 4, 2, 2, 5, epoch)
        lanes = [plan.lane(group, stream) for group in range(2) for stream in range(2)]
        order.append([[(p.shard.file, p.start, p.stop) for p in lane] for lane in lanes])
    digest = hashlib.sha256(repr(order).encode()).hexdigest()
    assert digest == "702d9a4221aa11bbb4986685b412d564df930eefc1dcc38916256660485ecc82"


def test_a_large_part_is_seen_once_an_epoch_and_in_the_order_of_all() -> None:
    listed = shards([30_000] * 3)
    total = 90_000
    for group, stream in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        everything = EpochPlan(listed, 4, 2, 2, 5, 1).lane(group, stream)
        assert EpochPlan(listed, 4, 2, 2, 5, 1, range(total)).lane(group, stream) == everything
    assert EpochPlan(listed, 4, 2, 2, 5, 1, range(20_000, total)).images == 70_000


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 3), st.data())
def test_an_epoch_repeats_exactly_the_chosen_images_and_fills_every_group(
    counts: list[int], groups: int, data: st.DataObject
) -> None:
    listed = shards(counts)
    everything = [(s.file, i) for s in listed for i in range(s.images)]
    start = data.draw(st.integers(0, len(everything) - 1))
    within = range(start, data.draw(st.integers(start + 1, len(everything))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualscore.data.epoch_plan.SHORTEST_EPOCH", 100)
        _check_epoch(EpochPlan(listed, 64, 4, groups, 0, 0, within), groups, everything[start : within.stop])


def _check_epoch(plan: EpochPlan, groups: int, chosen: list[tuple[str, int]]) -> None:
    lanes = [plan.lane(group, stream) for group in range(groups) for stream in range(4)]
    seen = Counter((p.shard.file, i) for lane in lanes for p in lane for i in range(p.start, p.stop))
    assert set(seen) == set(chosen)
    assert len(set(seen.values())) == 1
    assert sum(seen.values()) >= 100
    assert plan.batches >= groups


def test_the_halves_are_disjoint_and_exact(demo_shards: Path) -> None:
    seen = {}
    total = find_data(config(demo_shards))[1].splits["train"].images
    for half, first in (("A", 0), ("B", total - 50)):
        data = build_datamodule(config(demo_shards, "data.images=50", f"data.half={half}"))
        assert data.counts["train"] == 50
        assert data.statistics_images == total
        batches = [batch for batch, _ in zip(data.epoch_loader(0, 0), range(30), strict=False)]
        positions = torch.cat([batch.position for batch in batches])
        assert sorted(positions.unique().tolist()) == list(range(first, first + 50))
        assert torch.equal(torch.cat([b.ordinal for b in batches]), positions)
        measured = list(data.evenly_spaced("train", 10, 4))
        chosen = torch.cat([b.position for b in measured]).tolist()
        assert chosen == [first + 5 * k + 4 for k in range(10)]
        assert torch.cat([b.ordinal for b in measured]).tolist() == list(range(10))
        seen[half] = data
    assert not set(seen["A"].training or ()) & set(seen["B"].training or ())  # type: ignore[attr-defined]
    alone = build_datamodule(config(demo_shards))
    assert len({alone.identity, seen["A"].identity, seen["B"].identity}) == 3
    assert training_images(config(demo_shards), find_data(config(demo_shards))[1]) is None


def test_what_stands_for_an_unreadable_image_is_of_the_same_half() -> None:
    plan = EpochPlan(shards([30, 30]), 4, 2, 1, 0, 0, range(50, 60))
    assert set(islice(plan.substitutes(55), 200)) == set(range(50, 60))


def test_images_that_are_not_there_are_refused(demo_shards: Path) -> None:
    total = find_data(config(demo_shards))[1].splits["train"].images
    most = total // 2
    find_data(config(demo_shards, f"data.images={total}"))
    find_data(config(demo_shards, f"data.images={most}", "data.half=B"))
    with pytest.raises(DataError, match=rf"{total} training images.*data\.images={total + 1} of them;"):
        find_data(config(demo_shards, f"data.images={total + 1}"))
    with pytest.raises(DataError, match="of them, twice, without sharing any"):
        find_data(config(demo_shards, f"data.images={most + 1}", "data.half=A"))
    with pytest.raises(ConfigError, match=r"data\.half: needs data\.images"):
        config(demo_shards, "data.half=A")
    with pytest.raises(ConfigError, match=r"data\.images: must be 0 \(all\) or ≥ 2, not 1"):
        config(demo_shards, "data.images=1")
    with pytest.raises(ConfigError, match=r"data\.images: needs shards"):
        load_experiment("texture_mixture", ["data.images=10"], ROOT / "experiments")


def test_ten_images_train_in_batches_of_sixteen_and_go_on_to_the_same_bits(
    workspace: Workspace, demo_shards: Path
) -> None:
    few = [*TINY, f"data.path={demo_shards}", "data.images=10", "data.half=B", "optim.warmup_steps=0"]
    few += ["trainer.validate_every=2", "data.workers=1"]
    printed = workspace.run("train", "patches_dual", *few, "trainer.max_steps=2", "--runs", "parts")
    assert "10 training images" in printed
    workspace.run("train", "patches_dual", *few, "trainer.max_steps=4", "--runs", "parts")
    workspace.run("train", "patches_dual", *few, "trainer.max_steps=4", "--runs", "whole")
    parts, whole = (
        torch.load(workspace.folder / run / "patches_dual/checkpoints/last.ckpt", weights_only=True)
        for run in ("parts", "whole")
    )
    assert parts["global_step"] == 4
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][name], tensor), name
