"""Whole runs of whole experiments, shrunk."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dualscore
import forking
from dualscore.settings.experiment import available
from workspace import EVERYTHING, ROOT, TINY, Workspace

DUAL = [*TINY, "optim.warmup_steps=2", "optim.ema_steps=3"]
PROTOTYPE = [
    "optim.method=adam", "optim.lr=2e-3", "network.norm=scale_preserving", "network.residual=false",
    "energy.potential=false", "energy.residual_input=whitened", "noise.t_min=1e-9", "noise.t_max=1e3",
    "noise.stratified=false", "energy.phase=false",
]  # fmt: skip
CONSTANT = [*DUAL, "optim.schedule=halving", "optim.halve_every=4"]


def tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors and numbers of a nested state, by their places."""
    if isinstance(state, torch.Tensor | float | int):
        return {name: torch.as_tensor(state)}
    if state is None:
        return {}
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, part in parts for k, v in tensors(part, f"{name}.{key}").items()}


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Largest difference between two states, 0 only if they are equal bit for bit."""
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert all(v.isfinite().all() for state in (a, b) for v in state.values())
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def test_a_run_trains_validates_logs_and_evaluates(workspace: Workspace, demo_shards: Path) -> None:
    printed = workspace.run(
        "train",
        "patches_dual",
        *DUAL,
        EVERYTHING,
        "network.output_gain=1e-6",  # so that the energy is its anchor, and stays close to it
        "optim.lr=1e-5",
        f"data.path={demo_shards}",
        "trainer.max_steps=6",
        "trainer.validate_every=3",
    )
    assert "step      3/6" in printed
    assert "bits/dim" in printed
    report = workspace.report("patches_dual")
    assert report["bits_per_dim"]["paper"]["images"] == 64
    assert report["dimension"] == 256
    assert report["dataset"]["name"] == "demo"
    assert "scikit-image" in report["dataset"]["release"]
    figures = report["bits_per_dim"]
    assert list(figures) == ["paper", "dequantized", "bound", "ode"]
    for figure in figures.values():
        assert {"value", "stderr", "images", "evaluations"} <= set(figure)
        assert figure["value"] == pytest.approx(report["yardsticks"]["stationary"]["value"], abs=0.5)
    assert "verdict" in printed
    assert report["complete"]
    # At the start the anchored energy is the stationary Gaussian on the same images.
    assert report["bits_per_dim"]["paper"]["value"] == pytest.approx(
        report["yardsticks"]["stationary"]["value"], abs=0.15
    )
    assert report["yardsticks"]["full_covariance"]["value"] < report["yardsticks"]["stationary"]["value"]
    assert report["train"]["images"] == 32
    assert report["train"]["value"] > 0
    keys = {"noise_variance", "psnr_in", "psnr_out", "space_loss", "time_loss", "effective_dimension"}
    assert len(report["noise_levels"]) == 9
    for level in report["noise_levels"]:
        assert keys <= level.keys()
        assert level["images"] == 32
        assert level["effective_dimension"] == pytest.approx(256 * level["space_loss"])

    folder = workspace.folder / "runs" / "patches_dual"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "val/bits_per_dim",
        "val/bits_per_dim_stderr",
        "val/bound",
        "val/bound_stderr",
        "val/log_normalizer",
        "val/space_loss",
        "val/time_loss",
        "train/loss",
        "train/space_loss",
        "train/time_loss",
        "train/largest_gradient_norm",
        "train/images_per_second",
        "space_loss/+45dB",
        "time_loss/-15dB",
        "psnr/+00dB",
    } <= tags
    assert [event.step for event in events.Scalars("val/bits_per_dim")] == [2, 5]  # counted from 0
    norms = [event.value for event in events.Scalars("train/largest_gradient_norm")]
    assert len(norms) == 6
    assert min(norms) > 0

    model = dualscore.load(folder / "checkpoints" / "best.ckpt")
    assert model.log_normalizer is not None
    pixels = torch.randint(0, 256, (5, 1, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    assert model.bits_per_dim(pixels).shape == (5,)
    assert model.bits_per_dim(pixels).isfinite().all()


@pytest.mark.parametrize("stop", [4, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(
    workspace: Workspace, once: Callable[..., Path], trained_once: Callable[..., Path], stop: int
) -> None:
    """Weights, optimiser, average and place in the data, mid-epoch and (4 steps an epoch) at its end."""
    few = once("few", _few) / "few"
    settings = [*CONSTANT, f"data.path={few}", "trainer.validate_every=2"]
    never_stopped = trained_once("never_stopped", "patches_dual", *settings, "trainer.max_steps=10")
    workspace.run("train", "patches_dual", *settings, f"trainer.max_steps={stop}", "--runs", "runs/a")
    printed = workspace.run("train", "patches_dual", *settings, "trainer.max_steps=10", "--runs", "runs/a")
    assert f"goes on from step {stop}" in printed
    places = [workspace.folder / "runs/a/patches_dual", never_stopped / "runs/patches_dual"]
    resumed, whole = (workspace.checkpoint(str(place)) for place in places)
    assert resumed["global_step"] == whole["global_step"] == 10
    assert difference(resumed["state_dict"], whole["state_dict"]) == 0
    for a, b in zip(resumed["optimizer_states"], whole["optimizer_states"], strict=True):
        for index in a["state"]:
            assert difference(a["state"][index], b["state"][index]) == 0
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    place = [c["loops"]["fit_loop"]["state_dict"]["combined_loader"] for c in (resumed, whole)]
    assert place[0] == place[1]
    steps = []
    for run in places:
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        steps.append([(e.step, e.value) for e in events.Scalars("val/bits_per_dim")])
    assert steps[0] == steps[1]


def _few(folder: Path) -> Path:
    """A demo set of 70 training images, so that an epoch is 4 batches of 16."""
    from PIL import Image

    from data_prep.cli import main as prepare
    from fakes import photograph

    photographs = folder / "photographs"
    photographs.mkdir(exist_ok=True)
    for name, box in {"astronaut": (0, 0, 64, 64), "chelsea": (0, 0, 64, 64)}.items():
        piece: Image.Image = photograph(name).crop(box)
        piece.save(photographs / f"{name}.png")
    out = folder / "few"
    assert prepare(["build", "folder", "--src", str(photographs), "--out", str(out), "--size", "16"]) == 0
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dataset": "folder"', '"dataset": "demo"'))
    return out


def test_the_same_command_on_a_finished_run_says_so_and_fresh_starts_beside(
    workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.max_steps=3"]
    workspace.run("train", "patches_dual", *settings)
    before = workspace.checkpoint("patches_dual")
    assert "is complete (3 steps)" in workspace.run("train", "patches_dual", *settings)
    workspace.run("train", "patches_dual", *settings, "--fresh")
    after, beside = workspace.checkpoint("patches_dual"), workspace.checkpoint("patches_dual-2")
    assert difference(before["state_dict"], after["state_dict"]) == 0
    assert difference(before["state_dict"], beside["state_dict"]) == 0
    assert "runs/patches_dual-2 is complete" in workspace.run("train", "patches_dual", *settings)
    assert "optim.lr=0.005 (now 0.1)" in workspace.fail("train", "patches_dual", *settings, "optim.lr=0.1")


DATASETS = ("imagenet64", "imagenet32", "cifar10", "bsds300", "bsds500", "photographs")


@pytest.mark.parametrize("experiment", available(ROOT / "experiments"))
def test_every_experiment_trains_a_step_and_evaluates(
    workspace: Workspace,
    demo_shards: Path,
    demo32_shards: Path,
    demo_half: Callable[[str], Path],
    official_shards: Callable[[str], Path],
    experiment: str,
) -> None:
    dataset = next((d for d in DATASETS if experiment.startswith(d.removesuffix("500"))), None)
    path = demo_shards if dataset is None else official_shards(dataset)
    path = demo32_shards if experiment == "patches32_dual" else path
    path = demo_half(experiment[-1]) if experiment in ("patches_a", "patches_b") else path
    vectors = experiment.startswith(("scale_", "mode_"))
    few = [
        "data.batch_size=8", "trainer.validate_images=8", "evaluate.images=16", "evaluate.train_images=8",
        "evaluate.subset_images=8", "evaluate.batch_size=16", "evaluate.strata=2", "evaluate.ode_images=2",
        "evaluate.ode_tolerance=0.1", "evaluate.chains=0",
    ]  # fmt: skip
    few += ["data.size=16"] if vectors or experiment.startswith("bsds32_") else []
    few += ["network.layers=2"] if not vectors else []
    few += ["data.size=32", "data.crops=[8, 16]"] if dataset == "photographs" else []
    slow = experiment in ("cifar10_dual", "imagenet32_dual") or experiment.startswith("gaussian_textures")
    if slow:  # of 3,072 dimensions, or of data sets that are drawn anew, a covariance takes seconds
        few.append("evaluate.yardsticks=[stationary]")
    # The flow of an untrained radial energy leaves every range of numbers.
    estimators = EVERYTHING if not vectors else "evaluate.estimators=[paper,checks]"
    estimators = "evaluate.estimators=[paper,ode,checks]" if experiment.endswith("_float") else estimators
    if experiment == "bsds300":  # of vectors that have a density
        estimators = "evaluate.estimators=[paper,bound,ode,checks]"
    if experiment in ("patches_a", "patches_b"):  # which are patches_dual on other photographs
        estimators = "evaluate.estimators=[paper,bound]"
    workspace.run(
        "train", experiment, *TINY, f"data.path={path}", "trainer.max_steps=2", "optim.warmup_steps=0",
        "evaluate.psnr=[45,0]", "data.workers=0", estimators, *few,
    )  # fmt: skip
    report = workspace.report(experiment)
    assert ("paper" in report["bits_per_dim"]) == ("denoiser" not in experiment)
    floats = "not quantised" in report["dataset"]["release"]
    assert ("bound" in report["bits_per_dim"]) == (not floats)
    assert (report["noise_levels"][0]["time_loss"] is None) == ("denoiser" in experiment)
    assert report["yardsticks"]["stationary"]["value"] > 0
    if not slow:
        assert (report["yardsticks"]["full_covariance"]["value"] is None) == (report["dimension"] > 4096)


@pytest.mark.long
def test_imagenet64_dual_at_full_size(workspace: Workspace, official_shards: Callable[[str], Path]) -> None:
    """8,649,856 parameters: three steps of 8, stopped after two, resumed, evaluated, loaded."""
    settings = [
        f"data.path={official_shards('imagenet64')}", "data.batch_size=8", "trainer.accelerator=cpu",
        "trainer.validate_images=4", "trainer.validate_every=1", "evaluate.images=4",
        "evaluate.train_images=4", "evaluate.batch_size=4", "evaluate.psnr=[30]", "data.workers=1",
        "evaluate.estimators=[paper]", "trainer.compile=false", "evaluate.yardsticks=[full_covariance]",
    ]  # fmt: skip
    assert "8,649,856 parameters" in workspace.run(
        "train", "imagenet64_dual", *settings, "trainer.max_steps=2"
    )
    printed = workspace.run("train", "imagenet64_dual", *settings, "trainer.max_steps=3")
    assert "goes on from step 2" in printed
    assert workspace.checkpoint("imagenet64_dual")["global_step"] == 3
    workspace.run("evaluate", "imagenet64_dual", "evaluate.images=6")
    report = workspace.report("imagenet64_dual")
    assert report["dimension"] == 3 * 64 * 64
    assert report["bits_per_dim"]["paper"]["images"] == 6
    assert report["dataset"]["release"].startswith("imagenet64 down-sampled, official")
    assert report["yardsticks"]["full_covariance"]["value"] is None
    model = dualscore.load(workspace.folder / "runs/imagenet64_dual/checkpoints/best.ckpt")
    assert sum(p.numel() for p in model.parameters()) == 8_649_856
    assert model.denoise(torch.rand(1, 3, 64, 64), 0.1).shape == (1, 3, 64, 64)


@pytest.mark.long
@pytest.mark.parametrize(
    ("experiment", "recipe", "precision", "tolerance"),
    [
        ("patches_dual", PROTOTYPE, "32-true", 1e-6),
        # SOAP's bases are arbitrary where gradients vanish, and rounding chooses among them: weights differ
        # in directions that hardly anything depends on, figures by less the smaller the steps are.
        ("patches_dual", ["optim.lr=1e-3"], "64-true", None),
        # The paper's energy has weights whose first gradients are rounding errors, which Adam blows up to
        # whole steps; in double precision nothing of that remains.
        ("imagenet32_dual", [], "64-true", 1e-9),
    ],
)
def test_two_processes_train_and_measure_as_one(
    workspace: Workspace,
    demo_shards: Path,
    official_shards: Callable[[str], Path],
    experiment: str,
    recipe: list[str],
    precision: str,
    tolerance: float | None,
) -> None:
    path = demo_shards if experiment == "patches_dual" else official_shards("imagenet32")
    settings = [*TINY, f"data.path={path}", "optim.warmup_steps=0", "trainer.max_steps=3", "data.workers=1"]
    settings += [*recipe, "trainer.validate_images=33", "evaluate.images=37", "evaluate.psnr=[45,15]"]
    settings += [f"trainer.precision={precision}", "evaluate.subset_images=37", EVERYTHING]
    workspace.run("train", experiment, *settings, "--runs", "runs/one")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dualscore", "train", experiment, *settings, "trainer.devices=2"]
    finished = subprocess.run(
        [*command, "--runs", "runs/two"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    one, two = workspace.checkpoint(f"one/{experiment}"), workspace.checkpoint(f"two/{experiment}")
    before = float(one["state_dict"].pop("log_normalizer")), float(two["state_dict"].pop("log_normalizer"))
    exact = tolerance is not None
    assert before[0] == pytest.approx(before[1], **({"rel": 1e-7} if exact else {"abs": 1e-4}))
    if tolerance is not None:
        assert difference(one["state_dict"], two["state_dict"]) < tolerance
    reports = [workspace.report(f"{run}/{experiment}") for run in ("one", "two")]
    for report in reports:
        assert [level["images"] for level in report["noise_levels"]] == [37, 37]
    for name, figure in reports[0]["bits_per_dim"].items():
        other = reports[1]["bits_per_dim"][name]
        # Batches of the ODE are solved together: another split of the images gives other steps.
        near = 1e-5 if name != "ode" else 0.01
        assert figure["value"] == pytest.approx(other["value"], abs=near), name
        spread = {"rel": 1e-3} if exact or name != "ode" else {"abs": near}
        assert figure["stderr"] == pytest.approx(other["stderr"], **spread), name
        if name != "ode":
            assert figure["evaluations"] == other["evaluations"]
    scores = [c["callbacks"]["Saving"]["best"] for c in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    logs = [EventAccumulator(str(Path("runs") / run / experiment)).Reload() for run in ("one", "two")]
    losses = [[event.value for event in log.Scalars("train/loss")] for log in logs]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if exact else 1e-2)  # of both devices' images


def test_a_run_in_bf16_is_measured_in_full_precision_and_learns_alike(
    workspace: Workspace, demo_shards: Path
) -> None:
    """On the paper's energy, whose whole value comes from the network; 40 steps, enough to move it.

    At twice the rate they are chaotic where t is largest: another seed changes the time loss fifteenfold.
    """
    settings = [*TINY, f"data.path={demo_shards}", "data.dataset=demo", "data.size=16", "network.scales=2"]
    settings += ["optim.warmup_steps=0", "optim.lr=1e-3", "trainer.max_steps=40", "data.workers=0"]
    levels = {}
    for precision in ("32-true", "bf16-mixed"):
        workspace.run(
            "train", "imagenet64_dual", *settings, f"trainer.precision={precision}", "--runs", precision
        )
        report = workspace.folder / precision / "imagenet64_dual" / "evaluation.json"
        levels[precision] = json.loads(report.read_text())["noise_levels"]
    assert levels["32-true"] != levels["bf16-mixed"]
    for single, mixed in zip(*levels.values(), strict=True):
        assert mixed["space_loss"] == pytest.approx(single["space_loss"], rel=0.005)
        assert mixed["time_loss"] == pytest.approx(single["time_loss"], rel=0.1, abs=1e-5)


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.max_steps=2000", "trainer.validate_every=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dualscore", "train", "patches_dual", *settings]
    process = forking.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "step      4/" in line:
            process.send_signal(signal.SIGINT)
            break
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    assert "patches_dual: stopped by Ctrl-C" in workspace.run("status")
    step = workspace.checkpoint("patches_dual")["global_step"]
    assert step >= 2  # the line is printed before its checkpoint is written
    more = [f"trainer.max_steps={step + 2}", "optim.warmup_steps=2"]
    assert f"goes on from step {step}" in workspace.run("train", "patches_dual", *settings, *more)


def test_a_complete_run_without_its_evaluation_is_evaluated(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.max_steps=3"]
    workspace.run("train", "patches_dual", *settings)
    first = workspace.report("patches_dual")
    path = workspace.folder / "runs/patches_dual/evaluation.json"
    path.unlink()
    workspace.run("train", "patches_dual", *settings)
    assert workspace.report("patches_dual") == first
    # So is one whose evaluation is of an earlier best checkpoint, or was cut off.
    for change in ({"checkpoint_sha256": "0" * 64}, {"complete": False}):
        path.write_text(json.dumps(first | change))
        workspace.run("train", "patches_dual", *settings)
        assert workspace.report("patches_dual") == first


@pytest.mark.parametrize(("best_by", "tag"), [("bound", "val/bound"), ("loss", "val/loss")])
def test_best_is_the_lowest_validation_figure(
    workspace: Workspace, demo_shards: Path, best_by: str, tag: str
) -> None:
    """With a learning rate that ruins the energy, the first validation stays the best."""
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.max_steps=12", "trainer.validate_every=4"]
    workspace.run("train", "patches_dual", *settings, "optim.lr=0.03", f"trainer.best={best_by}")
    folder = workspace.folder / "runs/patches_dual"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    figures = [event.value for event in events.Scalars(tag)]
    best = workspace.checkpoint("patches_dual", "best")["global_step"]
    assert best == 4 * (1 + figures.index(min(figures)))
    assert min(figures) < max(figures)


def test_a_named_run_lives_beside_the_experiments_own(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.max_steps=3"]
    workspace.run("train", "patches_dual", *settings, "--name", "mine")
    assert workspace.report("mine")["experiment"] == "patches_dual"
    workspace.run("evaluate", "patches_dual", "--name", "mine", "evaluate.images=32")
    assert workspace.report("mine")["bits_per_dim"]["paper"]["images"] == 32
    assert not (workspace.folder / "runs/patches_dual").exists()
    assert "patches_dual" in workspace.run("experiments")
