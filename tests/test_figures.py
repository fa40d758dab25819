"""Figures of the paper, from shrunken runs."""

import json

import pytest

from workspace import TINY, Workspace

SHRUNK = [
    *TINY, "network.width=8", "data.size=40", "data.workers=0", "trainer.max_steps=2",
    "trainer.validate_every=2",
    "optim.warmup_steps=0", "evaluate.estimators=[paper]", "evaluate.psnr=[0]",
]  # fmt: skip


def test_figure_1_is_drawn_from_the_two_runs(workspace: Workspace) -> None:
    assert "make train EXP=scale_mixture_dual" in workspace.fail("figure", "1")
    workspace.run("train", "scale_mixture_dual", *SHRUNK)
    assert "make train EXP=scale_mixture_single" in workspace.fail("figure", "1")
    workspace.run("train", "scale_mixture_single", *SHRUNK)
    printed = workspace.run("figure", "1", "--out", "drawn")
    folder = workspace.folder / "drawn"
    for ending, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
        file = folder / f"figure1.{ending}"
        assert f"drawn/{file.name}" in printed
        assert file.read_bytes().startswith(magic)
        assert file.stat().st_size > 5000
    numbers = json.loads((folder / "figure1.json").read_text())
    assert set(numbers["energy_db_per_dim"]) == {"truth", "dual", "single"}
    assert len(numbers["radius"]) == len(numbers["energy_db_per_dim"]["dual"])
    assert sum(numbers["data_histogram"]["counts"]) == 4096
    for name in ("dual", "single"):
        largest = numbers["largest_error_over_all_db_per_dim"][name]
        assert largest >= max(numbers["largest_error_db_per_dim"][name]) > 0
    # The true score of the wide component is −r/16 far out, whatever the models say.
    radius, score = numbers["radius"][-1], numbers["radial_score"]["truth"][-1]
    assert score == pytest.approx(-radius / 16, rel=0.05)


def test_there_is_no_other_figure(workspace: Workspace) -> None:
    assert "there is no figure '7'; there are: 1" in workspace.fail("figure", "7")
