"""Evaluations: estimators on known densities, interrupted ones that go on, figures that cannot be given."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualscore.densities import gaussian_textures
from dualscore.errors import FlowError
from dualscore.evaluation.session import nested_choice
from dualscore.evaluation.store import RowStore
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import Estimate
from dualscore.likelihood.units import STEP
from dualscore.measuring import quantities
from dualscore.measuring.checks import CALIBRATION, HEAT, IMAGE, LOG_Z, MASS, ODE, RISE, SPACE, TIME
from dualscore.measuring.measured import Grid, choose
from dualscore.measuring.row_figures import Estimated, component_weights, difference
from dualscore.measuring.subject import Images, Stage, Subject, joined
from dualscore.report_tables import legend
from workspace import EVERYTHING, TINY, Workspace

SMALL = [
    *TINY, EVERYTHING, "optim.warmup_steps=0", "trainer.max_steps=2", "trainer.validate_every=2",
    "network.layers=2", "evaluate.psnr=[45,15,0]", "evaluate.yardsticks=[stationary]",
    "evaluate.strata=6", "evaluate.ode_images=4", "evaluate.draws=2",
]  # fmt: skip


def train(workspace: Workspace, *settings: str, experiment: str = "gaussian_textures") -> dict[str, Any]:
    workspace.run("train", experiment, *SMALL, "data.workers=0", *settings)
    return workspace.report(experiment)


def test_every_estimator_finds_the_truth_of_gaussian_textures(workspace: Workspace) -> None:
    """The anchored energy is exact at the start, so two small steps leave it right."""
    report = train(
        workspace, "evaluate.images=600", "evaluate.subset_images=300", "evaluate.ode_images=12",
        "evaluate.strata=16", "evaluate.batch_size=100", "evaluate.chains=64", "optim.lr=1e-6",
        "evaluate.ode_tolerance=1e-2",
        "optim.final_lr=1e-6",
    )  # fmt: skip
    assert report["complete"]
    assert list(report["bits_per_dim"]) == ["paper", "dequantized", "bound", "ode"]
    for name, figure in report["bits_per_dim"].items():
        gap = figure["above_truth"]
        assert abs(gap["value"]) < 0.02 + 3 * gap["stderr"], name
        assert gap["stderr"] < 0.03, name
        assert figure["stderr"] > 0
    bound = report["bits_per_dim"]["bound"]
    assert bound["above_truth"]["value"] > -3 * bound["above_truth"]["stderr"]
    assert sum(part["value"] for part in bound["parts"].values()) == pytest.approx(bound["value"])
    assert report["consistent"]
    assert report["word"] == "consistent"
    assert report["verdict"].startswith("consistent")
    words = {(check["check"], check["where"]): check["word"] for check in report["checks"]}
    assert "inconsistent" not in words.values()
    assert words[RISE, "no noise to 0 dB"] == "consistent"
    assert {word for (name, _), word in words.items() if name in (HEAT, SPACE)} == {"consistent"}
    for check in report["checks"]:
        if check["stderr"] is not None:
            assert abs(check["value"]) < check["tolerance"] + 3 * check["stderr"], check
    assert {check["check"] for check in report["checks"]} == {
        MASS, LOG_Z, RISE, IMAGE, HEAT, SPACE, TIME, ODE, f"{CALIBRATION}, mean", f"{CALIBRATION}, spread"
    }  # fmt: skip
    assert "rise to next" in " ".join(legend(report))
    assert report["truth"]["largest_energy_error_db_per_dim"] < 0.05


def test_evaluations_are_counted(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the report says against the images that went through the network."""
    from dualscore.networks import UNet

    train(workspace, "evaluate.estimators=[paper]")
    seen = 0
    forward = UNet.forward

    def counting(self: UNet, image: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(image)
        return forward(self, image, noise_variance)

    monkeypatch.setattr(UNet, "forward", counting)
    per_level = 32 * 3
    for estimator, beside in [("paper", 32 + 32), ("dequantized", 0), ("bound", 0), ("ode", 0)]:
        seen = 0
        folder = workspace.folder / "runs/gaussian_textures"
        (folder / "evaluation").rename(workspace.folder / f"old_{estimator}")
        (folder / "evaluation.json").unlink()  # or its estimators would be made too
        workspace.run("evaluate", "gaussian_textures", *SMALL, f"evaluate.estimators=[{estimator}]")
        figures = workspace.report("gaussian_textures")["bits_per_dim"]
        assert list(figures) == [estimator]
        # Beside it: the noise levels, and for the paper's protocol the training images.
        certificate = figures[estimator].get("certificate", {"evaluations": 0})["evaluations"]
        assert seen == figures[estimator]["evaluations"] + certificate + per_level + beside
        if estimator == "bound":  # what a dry run says of it
            printed = workspace.run(
                "--dry-run", "evaluate", "gaussian_textures", *SMALL, "evaluate.estimators=[bound]"
            )
            found = re.search(
                r"(\d+) images, at most (\d+) times each; (\d+) training images before, (\d+) times each",
                " ".join(printed.replace("│", " ").split()),
            )
            assert found is not None, printed
            images, most, pilot, each = map(int, found.groups())
            spared = most - 1 - figures["bound"]["strata"]
            assert images * (most - spared) + pilot * each == figures["bound"]["evaluations"]


def test_an_interrupted_evaluation_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of a stage: what was measured stays, and the figures are the same."""
    settings = ["evaluate.images=64", "evaluate.batch_size=8", "evaluate.estimators=[paper,dequantized]"]
    whole = train(workspace, *settings)
    folder = workspace.folder / "runs/gaussian_textures"
    measured: list[int] = []
    stop_after = 3
    original = Images.with_density

    def counting(self: Images, subject: Subject, draw: int = 0) -> torch.Tensor:
        if draw == 1:
            if stop_after is not None and len(measured) >= 8 * stop_after:
                raise KeyboardInterrupt
            measured.extend(self.position)
        return original(self, subject, draw)

    monkeypatch.setattr(Images, "with_density", counting)
    (folder / "evaluation").rename(workspace.folder / "old")
    (folder / "evaluation.json").unlink()
    from dualscore.cli import main

    assert main(["train", "gaussian_textures", *SMALL, "data.workers=0", *settings]) == 130
    partial = workspace.report("gaussian_textures")
    assert not partial["complete"]
    assert list(partial["bits_per_dim"]) == ["paper"]
    assert measured == list(range(24))
    stop_after = None  # type: ignore[assignment]
    measured.clear()
    workspace.run("train", "gaussian_textures", *SMALL, "data.workers=0", *settings)
    assert measured == list(range(24, 64))  # nothing twice
    assert workspace.report("gaussian_textures") == whole
    # Fewer estimators take none of those away that are known, and measure nothing.
    measured.clear()
    again = [*SMALL, "data.workers=0", *settings]
    workspace.run("evaluate", "gaussian_textures", *again, "evaluate.estimators=[paper]")
    assert workspace.report("gaussian_textures") == whole
    assert not measured
    # Another seed is another measurement: nothing of the old one is used, which stays until all is measured.
    stop_after = 3
    assert main(["evaluate", "gaussian_textures", *again, "seed=1"]) == 130
    assert workspace.report("gaussian_textures") == whole
    stop_after = None  # type: ignore[assignment]
    shutil.rmtree(folder / "evaluation")
    measured.clear()
    workspace.run("evaluate", "gaussian_textures", *settings, "seed=1", "evaluate.psnr=[45]")
    assert measured == list(range(64))


def test_a_denoiser_has_a_bound_and_an_ode(workspace: Workspace) -> None:
    plain = "energy={anchor: none, residual_input: raw, fading: false, offset: false}"
    report = train(workspace, "model=denoiser", plain, "evaluate.yardsticks=[full_covariance]")
    assert list(report["bits_per_dim"]) == ["bound", "ode"]
    assert report["checks"] == []
    assert (report["word"], report["consistent"], report["verdict"]) == ("not checked", False, "not checked")
    assert list(report["differences"]) == ["bound − Gaussian, full cov."]
    assert "rise to next" not in " ".join(legend(report))
    assert "train" not in report


@pytest.mark.parametrize("name", ["scale_mixture_dual", "mode_mixture_single", "gaussian_textures_float"])
def test_floats_have_densities_only(workspace: Workspace, name: str) -> None:
    tiny = ["data.size=16"] if "mixture" in name else []
    # The flow of an untrained radial energy leaves every range.
    estimators = ["paper", "bound"] if "mode" in name else ["paper", "bound", "ode"]
    tiny += [f"evaluate.estimators=[{','.join([*estimators, 'checks'])}]"]
    report = train(workspace, "network.width=8", *tiny, experiment=name)
    assert list(report["bits_per_dim"]) == estimators
    assert "certificate" not in report["bits_per_dim"]["bound"]
    assert report["truth"]["largest_energy_error_db_per_dim"] >= 0
    line = workspace.fail(
        "evaluate", name, *SMALL, *tiny, "network.width=8", "evaluate.estimators=[dequantized]"
    )
    assert "evaluate.estimators: dequantized cannot be had with data.quantized=false" in line


def test_figures_that_are_not_finite_are_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(workspace, "evaluate.estimators=[paper]")
    original = Images.constant

    def broken(self: Images, t: float) -> torch.Tensor:
        values = original(self, t)
        for bad in (3, 40):
            if bad in self.position:
                values[self.position.index(bad)] = math.nan
        return values

    monkeypatch.setattr(Images, "constant", broken)
    (workspace.folder / "runs/gaussian_textures/evaluation").rename(workspace.folder / "old")
    line = workspace.fail("evaluate", "gaussian_textures", *SMALL, "evaluate.estimators=[paper]", status=4)
    assert "of the test images are not finite, at positions 3, 40" in line
    assert "2 of 64" in line


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.images=1", "evaluate.images: must be ≥ 2: a standard error needs two images"),
        ("evaluate.ode_images=1", "must be ≥ 2"),
        ("evaluate.estimators=[]", "must name one estimator or more"),
        ("evaluate.estimators=[paper,paper]", "each once"),
        (
            "evaluate.estimators=[papier]",
            "evaluate.estimators: must be some of paper, dequantized, bound, ode, file, checks",
        ),
        ("evaluate.strata=0", "evaluate.strata: must be > 0"),
    ],
)
def test_impossible_requests_are_refused(workspace: Workspace, setting: str, message: str) -> None:
    assert message in workspace.fail("evaluate", "gaussian_textures", setting)


def test_rows_are_kept_by_what_decides_them_and_each_image_counts_once(tmp_path: Path) -> None:
    def store(rank: int = 0, **identity: object) -> RowStore:
        made = RowStore(tmp_path, "stage", {"checkpoint": "a", **identity}, rank)
        made.prepare()
        return made

    first, second = store(), store(rank=1)
    first.add({"position": torch.tensor([0, 2]), "energy": torch.tensor([1.0, 3.0])})
    first.flush()
    second.add({"position": torch.tensor([2, 1]), "energy": torch.tensor([3.0, 2.0])})
    second.flush()
    first.add({"position": torch.tensor([3]), "energy": torch.tensor([4.0])})
    first.flush()
    rows = store().read()
    assert rows["position"].tolist() == [0, 1, 2, 3]
    assert rows["energy"].tolist() == [1.0, 2.0, 3.0, 4.0]
    other = store(seed=1)
    assert other.read() == {}
    assert store().read()["position"].tolist() == [0, 1, 2, 3]  # kept beside
    assert json.loads((other.folder / "identity.json").read_text()) == {"checkpoint": "a", "seed": 1}
    # A row that is not finite is not remembered, and another checkpoint's rows are deleted.
    other.add({"position": torch.tensor([0]), "energy": torch.tensor([math.nan])})
    other.flush()
    assert len(other.read()["position"]) == 1
    assert store(seed=1).read() == {}
    store(checkpoint="b")
    assert [path.name for path in tmp_path.iterdir()] == [store(checkpoint="b").folder.name]


@pytest.mark.parametrize("left", [0, 30, 200, 400])
def test_a_part_that_was_cut_is_measured_again_and_no_other_is_lost(tmp_path: Path, left: int) -> None:
    def store() -> RowStore:
        return RowStore(tmp_path, "stage", {"checkpoint": "a"}, 0)

    def add(position: int) -> None:
        kept = store()
        kept.prepare()
        kept.add({"position": torch.tensor([position]), "energy": torch.tensor([float(position)])})
        kept.flush()

    for position in range(3):
        add(position)
    first, *_ = sorted(store().folder.glob("*.npz"))
    first.write_bytes(first.read_bytes()[:left])
    assert store().read()["position"].tolist() == [1, 2]
    add(0)
    assert store().read()["energy"].tolist() == [0.0, 1.0, 2.0]


def test_a_smaller_choice_of_images_lies_in_a_larger_one(workspace: Workspace, demo_shards: Path) -> None:
    """On shards: whatever the numbers, every image of a small stage is one of the large stages' images."""
    settings = [*SMALL, f"data.path={demo_shards}", "evaluate.images=50", "evaluate.subset_images=23"]
    workspace.run("train", "patches_dual", *settings, "evaluate.ode_images=3", "optim.ema_steps=0")
    positions = {}
    for path in (workspace.folder / "runs/patches_dual/evaluation").glob("*/*.npz"):
        positions.setdefault(path.parent.name.split("-")[0], set()).update(np.load(path)["position"].tolist())
    assert {name: len(found) for name, found in positions.items()} == {
        "paper": 50, "dequantized": 50, "normalizer": 50, "noise_levels": 23,
        "rises": 23, "heat": 23, "calibration": 23, "bound_strata": 23, "ends": 23, "ode": 3,
        "train_paper": 32, "train_normalizer": 32, "pilot": 32, "pilot_ends": 32, "certificate": 23,
        "mass": 4, "anchor": 512,
    }  # fmt: skip
    assert positions["ode"] < positions["noise_levels"] == positions["ends"] < positions["paper"]
    assert max(positions["paper"]) > 2700  # of 2888 images, all over the split
    more = ["evaluate.subset_images=2000", "evaluate.images=40"]  # more than there are chosen
    workspace.run("evaluate", "patches_dual", *settings, *more)
    report = workspace.report("patches_dual")
    assert report["complete"]
    assert report["bits_per_dim"]["bound"]["images"] == report["noise_levels"][0]["images"] == 40


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_choices_are_nested_and_spread(total: int, a: int, b: int) -> None:
    small, large = (nested_choice(total, min(n, total)) for n in sorted((a, b)))
    assert small <= large <= set(range(total))
    assert len(large) == min(max(a, b), total)
    if len(large) > 1:
        ordered = sorted(large)
        gaps = [y - x for x, y in pairwise([-1, *ordered, total])]
        assert max(gaps) <= 3 * total / len(large) + 2


def test_an_ode_that_fails_for_one_image_is_found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    density = gaussian_textures((1, 4, 4))
    (prior,) = density.components
    assert isinstance(prior, StationaryGaussian)
    subject = Subject(density, prior, None, quantized=False, dequantize=False, t_range=(1e-6, 1e2), seed=0)
    original = quantities.ode_energy

    def failing(model: Any, images: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if not images.isfinite().all():
            raise FlowError("non-finite values in state")
        return original(model, images, *rest, **options)

    monkeypatch.setattr(quantities, "ode_energy", failing)
    clean = density.sample(4, torch.Generator().manual_seed(0))
    stage = Stage("ode", "val", 4, quantities.ode_energies, {"tolerance": 1e-3})
    whole = stage.measure(subject, Images(clean, [0, 1, 2, 3]))["energy"]
    broken = clean.clone()
    broken[2] = math.nan
    found = stage.measure(subject, Images(broken, [0, 1, 2, 3]))["energy"]
    assert found.isnan().tolist() == [False, False, True, False]
    assert torch.allclose(found[[0, 1, 3]], whole[[0, 1, 3]], atol=0.05)


def test_t0_and_t1_are_where_the_bound_is_tightest() -> None:
    low = 1.001 * (STEP / 10) ** 2
    grid = Grid(low, low * math.exp(8), 8)
    assert grid.width == pytest.approx(1.0)
    assert grid.edge(8) == pytest.approx(grid.t_max)
    starts, stops = grid.starts(), grid.stops()
    assert starts == list(range(7))  # √t from a tenth of a step to three steps: e^6.8
    assert stops == [7, 8]
    space = torch.ones(5, 8, dtype=torch.float64)
    decoder = torch.tensor([9.0, 7.0, 3.0, 2.6, 2.4, 2.3, 2.25], dtype=torch.float64).expand(5, 7)
    prior = torch.tensor([0.9, 0.2], dtype=torch.float64).expand(5, 2)
    # A stratum costs ½ d: with d = 1 the decoder gives up ½ a stratum, worth it up to edge 2.
    rows = {"space": space}
    first, last = choose(grid, rows, {"decoder": decoder, "prior": prior}, 1)
    assert (first, last) == (6, 8)
    first, last = choose(grid, {"space": 0.2 * space}, {"decoder": decoder, "prior": prior + 1e-9}, 1)
    totals = {
        (i, j): float(decoder[0, i]) + 0.1 * (stops[j] - starts[i]) + float(prior[0, j])
        for i in range(7)
        for j in range(2)
    }
    best = min(totals, key=lambda pair: totals[pair])
    assert (first, last) == (starts[best[0]], stops[best[1]])


def test_differences_are_taken_over_shared_images() -> None:
    log_z = Estimate(1.0, 0.5)
    a = Estimated(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 2.0, 3.0, 4.0]), shared=log_z)
    b = Estimated(torch.tensor([1, 3]), torch.tensor([2.5, 4.7]), shared=log_z)
    c = Estimated(torch.tensor([0, 1, 2, 3]), torch.tensor([2.0, 3.0, 4.0, 3.0]))
    gap, images = difference(b, a, lambda _: None)
    assert images == 2
    assert gap.value == pytest.approx(0.6)
    assert gap.stderr == pytest.approx(0.1)  # log Z cancels
    other, images = difference(c, a, lambda _: None)
    assert images == 4
    assert other.value == pytest.approx(0.5 - 1.0)
    assert other.stderr == pytest.approx(math.hypot(0.5, 0.5))  # log Z's error, and that over images
    # The error over photographs, where those are known: of two in which the differences are 1, 1 and 1, −1.
    clustered, _ = difference(c, replace(a, shared=None), lambda position: position // 2)
    assert clustered.value == pytest.approx(0.5)
    assert clustered.stderr == pytest.approx(0.5)
    assert clustered.groups == 2
    one, two = joined({"position": torch.tensor([5, 3])}, {"position": torch.tensor([3, 9, 5])})
    assert (one.tolist(), two.tolist()) == ([1, 0], [0, 2])


def test_component_weights_come_from_the_energies() -> None:
    truth = {
        "position": torch.arange(4),
        "energy": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
        "component": torch.tensor([0, 0, 1, 1]),
    }
    error = torch.tensor([0.0, 0.0, math.log(2.0), math.log(2.0)], dtype=torch.float64)
    clean = {"position": torch.arange(4), "energy": truth["energy"] + 7.0 + error}
    found = component_weights(truth, clean, torch.tensor([0.5, 0.5]))
    assert found["model"] == pytest.approx([2 / 3, 1 / 3])
    assert found["images"] == [2, 2]


@pytest.mark.parametrize("factor", [pytest.param(-1.0, marks=pytest.mark.long), 3.0])
def test_a_wrong_term_in_a_trained_model_changes_the_verdict(
    workspace: Workspace, trained_once: Callable[..., Path], factor: float
) -> None:
    """c(t) bent in the checkpoint: only the energy notices, and the verdict says where."""
    settings = [
        "evaluate.images=200",
        "evaluate.subset_images=100",
        "evaluate.estimators=[paper,bound,checks]",
        "evaluate.chains=64",
    ]
    right = [*SMALL, "data.workers=0", *settings, "optim.lr=1e-6", "optim.final_lr=1e-6", "optim.ema_steps=0"]
    shutil.copytree(trained_once("right", "gaussian_textures", *right) / "runs", workspace.folder / "runs")
    report = workspace.report("gaussian_textures")
    assert report["consistent"]
    path = workspace.folder / "runs/gaussian_textures/checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    slopes = content["state_dict"]["model.offset.slopes"]
    slopes += factor * 0.05 * torch.sin(torch.linspace(0, 3, len(slopes)))
    torch.save(content, path)
    workspace.run("evaluate", "gaussian_textures", *settings)
    wrong = workspace.report("gaussian_textures")
    assert not wrong["consistent"]
    found = {check["check"] for check in wrong["checks"] if check["word"] == "inconsistent"}
    assert RISE in found
    assert wrong["word"] == "inconsistent"
    assert wrong["verdict"].startswith("INCONSISTENT: ")
    assert wrong["bits_per_dim"]["bound"]["value"] == pytest.approx(
        report["bits_per_dim"]["bound"]["value"], abs=1e-4
    )


def test_a_level_between_whole_decibels_has_its_rise_in_the_table(workspace: Workspace) -> None:
    printed = workspace.run(
        "train", "gaussian_textures", *SMALL, "data.workers=0", "evaluate.psnr=[45,22.5,22.4,0]",
        "evaluate.estimators=[paper,dequantized,checks]",
    )  # fmt: skip
    rows = {
        row.split()[0]: row for row in printed.splitlines() if re.match(r"^ *\d+(\.\d)? +\d+\.\d\d ", row)
    }
    assert rows.keys() == {"45", "22.5", "22.4", "0"}
    checks = workspace.report("gaussian_textures")["checks"]
    rises = {check["where"]: check for check in checks if check["check"] == RISE}
    for low, high in (("45", "22.5"), ("22.5", "22.4"), ("22.4", "0")):
        assert f"{rises[f'{low} to {high} dB']['value']:+.3f}" in rows[low]
