"""What makes training faster or smaller must not change what is learned."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.plain import plain, plain_loss
from dualscore.assemble import blank_statistics, build, build_score_model, image_shape
from dualscore.devices import allow_tf32
from dualscore.energy import ScoreModel
from dualscore.images import to_pixels
from dualscore.networks import convolution, normalization
from dualscore.noise import corrupt, log_uniform
from dualscore.objective import dual_score_matching
from dualscore.settings.experiment import load_experiment
from dualscore.training.optimizers import compiled_loss, obstacle
from dualscore.training.trainer import memory_advice
from workspace import ROOT, TINY, Workspace

SMALL = ["network.width=4", "data.size=16", "network.scales=2", "data.batch_size=8"]
# Adam: SOAP turns rounding into other bases of the directions that a first gradient leaves open.
DUAL = [*TINY, "optim.warmup_steps=1", "optim.ema_steps=3", "optim.schedule=halving", "optim.method=adam"]
EXPERIMENTS = ["imagenet64_dual", "imagenet64_best"]


def model_and_batch(experiment: str, dtype: torch.dtype, *settings: str) -> tuple[ScoreModel, list[Tensor]]:
    """A small model with an experiment's parts, and x, z, t over its range of noise levels."""
    config = load_experiment(experiment, [*SMALL, *settings], ROOT / "experiments")
    torch.manual_seed(0)
    model = build_score_model(config, blank_statistics(image_shape(config))).to(dtype)
    clean = torch.rand(8, *image_shape(config), dtype=dtype)
    t = log_uniform(torch.linspace(0, 1, 8, dtype=dtype), config.noise.t_min, config.noise.t_max)
    return model, [clean, torch.randn_like(clean), t]


def weights_gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("large", [False, True])
def test_a_step_has_the_gradient_of_the_equations_written_down_plainly(
    experiment: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both as small and as large networks compute it."""
    for module in (convolution, normalization):
        monkeypatch.setattr(module, "WORTHWHILE", 0 if large else math.inf)
    model, batch = model_and_batch(experiment, torch.float64)
    reference = plain(model)
    expected = plain_loss(reference, *batch)
    found = dual_score_matching(model, *batch).total.mean()
    assert torch.allclose(found, expected, rtol=1e-10)
    ours, theirs = weights_gradient(model, found), weights_gradient(reference, expected)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-9


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, "imagenet64_denoiser"])
def test_in_bfloat16_a_step_has_nearly_the_same_gradient(experiment: str) -> None:
    """PyTorch's own second derivative with respect to a convolution's weight is wrong there on a CPU."""
    model, batch = model_and_batch(experiment, torch.float32)
    expected = weights_gradient(model, dual_score_matching(model, *batch).total.mean())
    with torch.autocast("cpu", torch.bfloat16):
        losses = dual_score_matching(model, *batch)
    found = weights_gradient(model, losses.total.mean())
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02


def test_what_stays_out_of_autocast_stays_out_of_it_on_the_way_back() -> None:
    """The anchor's gradient is that of single precision, where the network says nothing."""
    model, (clean, _, t) = model_and_batch("imagenet64_best", torch.float32)
    for parameter in model.parameters():
        parameter.data.zero_()
    expected = model.gradients(clean, t)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.gradients(clean, t)
    assert torch.equal(found.image, expected.image)
    assert found.noise_variance is not None
    assert expected.noise_variance is not None
    assert torch.equal(found.noise_variance, expected.noise_variance)


needs_compiler = pytest.mark.skipif(obstacle("cpu") is not None, reason=str(obstacle("cpu")))


# Few layers: the compiler takes its time for each.
FEW = ["network.scales=1", "network.layers=2"]


@pytest.mark.long
@needs_compiler
@pytest.mark.timeout(600)
def test_the_compiled_loss_and_its_gradient_are_those_of_the_eager_one() -> None:
    model, batch = model_and_batch("imagenet64_dual", torch.float64, *FEW)
    eager, compiled = dual_score_matching(model, *batch), compiled_loss("cpu")(model, *batch)
    assert torch.allclose(eager.space, compiled.space, rtol=1e-10)
    assert eager.time is not None
    assert torch.allclose(eager.time, compiled.time, rtol=1e-8)
    gradients = [weights_gradient(model, losses.total.mean()) for losses in (eager, compiled)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-9


@pytest.mark.long
@needs_compiler
@pytest.mark.timeout(600)
def test_a_compiled_run_learns_what_the_eager_one_does(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*DUAL, *FEW, f"data.path={demo_shards}", "trainer.max_steps=3", "trainer.precision=64-true"]
    for compile_ in ("false", "true"):
        workspace.run(
            "train", "patches_dual", *settings, f"trainer.compile={compile_}", "--name", f"compile-{compile_}"
        )
    states = [workspace.checkpoint(f"compile-{c}")["state_dict"] for c in ("false", "true")]
    assert _largest_difference(*states) < 1e-7


def _largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    names = [name for name in first if name.startswith("model.")]
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in names)


def test_without_a_compiler_training_goes_on_and_says_so(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.max_steps=3", "trainer.compile=true"]
    printed = workspace.run("train", "patches_dual", *settings)
    assert "trainer.compile: there is no C++ compiler no-such-compiler" in printed
    assert "training goes on without" in printed


def test_pythons_headers_and_triton_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # there is such a file
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
    assert obstacle("cpu") == "Python's header files are missing (install python3-dev)"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert obstacle("cuda") == "the package triton is missing"


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    workspace: Workspace, demo_shards: Path, parts: int
) -> None:
    """Interrupted and taken up again in the middle, too; in double precision nothing but rounding differs."""
    settings = [*DUAL, f"data.path={demo_shards}", "trainer.precision=64-true", "trainer.validate_every=2"]
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=4", "--name", "whole")
    settings += [f"trainer.accumulate={parts}", "--name", "parts"]
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=2")
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=4")
    whole, cut = workspace.checkpoint("whole"), workspace.checkpoint("parts")
    assert cut["global_step"] == whole["global_step"] == 4
    assert _largest_difference(whole["state_dict"], cut["state_dict"]) < 1e-9
    name = "average.module.network.output.weight"
    assert torch.allclose(whole["state_dict"][name], cut["state_dict"][name], atol=1e-9)
    line = workspace.fail("train", "patches_dual", *settings, "trainer.accumulate=3", "trainer.max_steps=6")
    assert "trainer.accumulate: 3 must divide a device's batch, 16" in line


def test_tf32_is_off_unless_asked_for() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_a_gpu_without_bfloat16_is_refused(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Old GPU")
    monkeypatch.setattr("dualscore.training.trainer.accelerator", lambda _: "cuda")
    line = workspace.fail(
        "train", "patches_dual", *DUAL, f"data.path={demo_shards}", "trainer.precision=bf16-mixed"
    )
    assert "Old GPU has no bfloat16" in line


@pytest.mark.parametrize(
    ("batch", "accumulate", "said"),
    [
        (128, 1, "trainer.accumulate=2 makes the same step in parts of 64"),
        (12, 4, "trainer.accumulate=6 makes the same step in parts of 2"),
        (7, 1, "trainer.accumulate=7 makes the same step in parts of 1"),
        (7, 7, "make the network smaller (network.width) or the images"),
    ],
)
def test_where_a_batch_does_not_fit_the_next_smaller_equal_parts_are_named(
    batch: int, accumulate: int, said: str
) -> None:
    assert memory_advice(batch, accumulate) == said


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("[enforce] DefaultCPUAllocator")]
)
def test_a_batch_that_does_not_fit_is_told_what_may(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("dualscore.training.lightning_module.dual_score_matching", full)
    line = workspace.fail("train", "patches_dual", *DUAL, f"data.path={demo_shards}", "trainer.max_steps=3")
    assert "step 0: 16 images at once do not fit" in line
    assert "trainer.accumulate=2 makes the same step in parts of 8" in line


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_bf16_has_the_losses_and_energies_of_full_precision_at_every_noise_level(
    workspace: Workspace, official_shards: Callable[[str], Path], experiment: str
) -> None:
    """Of one model, trained for 10 steps so that its parts are not those it began with."""
    path = official_shards("imagenet64")
    settings = [*DUAL, "optim.lr=5e-3", f"data.path={path}", "trainer.max_steps=10", "data.workers=0"]
    settings += [
        "data.batch_size=8",
        "evaluate.images=2",
        "evaluate.train_images=2",
        "evaluate.subset_images=2",
    ]
    workspace.run("train", experiment, *settings)
    module, datamodule = build(load_experiment(experiment, settings, ROOT / "experiments"))
    module.load_state_dict(workspace.checkpoint(experiment)["state_dict"])
    (batch,) = datamodule.evenly_spaced("val", 32, 32)
    clean = to_pixels(batch.image, 3)
    noise = module.fixed_noise(batch, 0)
    model = module.evaluated
    low, high = module.t_range
    for t in torch.logspace(math.log10(low), math.log10(high), 9).tolist():
        variance = torch.full((len(clean),), t)
        found = []
        for mixed in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                losses = dual_score_matching(model, clean, noise, variance)
                energy = model(corrupt(clean, noise, variance), variance)
            assert losses.time is not None
            assert energy.dtype == losses.space.dtype == losses.time.dtype == torch.float32
            bits = energy.double().mean() / clean[0].numel() / math.log(2)
            found.append((float(losses.space.mean()), float(losses.time.mean()), float(bits)))
        (space, time, bits), mixed_figures = found
        assert mixed_figures != found[0]
        # A loss of 1e-4 is a ten-thousandth of the noise, where noise drowns all and the loss goes to 0.
        assert mixed_figures[0] == pytest.approx(space, rel=0.01, abs=1e-4)
        assert mixed_figures[1] == pytest.approx(time, rel=0.1, abs=1e-6)
        assert mixed_figures[2] == pytest.approx(bits, abs=0.02)
