"""Whether the device gives the right numbers: of the paper's format, and noise level by noise level."""

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import dualscore
from benchmarks.gpu.jobs import Jobs, Row
from benchmarks.gpu.setting import ROOT, Setting
from benchmarks.gpu.steps import BEST, DUAL, precision
from dualscore.assemble import build_datamodule, build_score_model, image_shape, load_statistics
from dualscore.energy import EnergyModel
from dualscore.images import to_pixels
from dualscore.model_files.released import read_network
from dualscore.noise import corrupt, fixed_noise, variance_at_psnr
from dualscore.objective import dual_score_matching
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment
from dualscore.training.optimizers import obstacle

DATA = ROOT / "tests" / "data"
KINDS = ["demo, trained", f"{DUAL}, random", f"{BEST}, random"]


def parity(setting: Setting) -> Jobs:
    """The networks of the paper's format against the outputs kept beside them: relative errors."""
    ways = [(name, False) for name in ("fp64", "fp32", "TF32", "bf16")]
    if obstacle(setting.device.type) is None and not setting.toy:  # the tests compile it already
        ways += [("fp32", True), ("bf16", True)]
    table: dict[str, Callable[[], Row]] = {
        f"energy, {'compiled' if compiled else 'eager'}, {name}": partial(_energy, setting, name, compiled)
        for name, compiled in ways
    }
    return table | {f"denoiser, eager, {name}": partial(_denoiser, setting, name) for name, _ in ways[:4]}


def _outputs(setting: Setting, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    with np.load(DATA / f"{name}_outputs.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]).to(setting.device, dtype) for key in arrays}


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest of any image."""
    error = (found.detach() - expected).reshape(len(expected), -1).norm(dim=1)
    return float((error / expected.reshape(len(expected), -1).norm(dim=1)).max())


def _energy(setting: Setting, name: str, compiled: bool) -> Row:
    dtype = torch.float64 if name == "fp64" else torch.float32
    expected = _outputs(setting, "energy_small", dtype)
    model = read_network(DATA / "energy_small.pth.tar").model.to(setting.device, dtype)
    find = torch.compile(model.gradients, fullgraph=True) if compiled else model.gradients
    with precision(name, setting.device):
        found = find(expected["noisy"], expected["noise_variance"])
    assert found.energy is not None
    assert found.noise_variance is not None
    return {
        "energy": _relative_error(found.energy, expected["energy"]),
        "∇_y U": _relative_error(found.image, expected["grad_image"]),
        "∂_t U": _relative_error(found.noise_variance, expected["grad_noise_variance"]),
    }


def _denoiser(setting: Setting, name: str) -> Row:
    dtype = torch.float64 if name == "fp64" else torch.float32
    expected = _outputs(setting, "denoiser_small", dtype)
    model = read_network(DATA / "denoiser_small.pth.tar").model.to(setting.device, dtype)
    with precision(name, setting.device), torch.no_grad():
        found = model.denoise(expected["noisy"], expected["noise_variance"])
    return {"denoised": _relative_error(found, expected["denoised"])}


def levels(setting: Setting) -> Jobs:
    """Both losses and energies at each noise level, bf16 and TF32 against fp32."""
    decibels = setting.config(DUAL).evaluate.psnr
    opened = cache(partial(_open, setting))
    return {
        f"{kind}, {name}, {level:g} dB": partial(_compare, opened, kind, name, level)
        for kind in KINDS
        for name in ("bf16", "TF32")
        for level in (decibels[::4] if setting.toy else decibels)
    }


class _Opened(NamedTuple):
    """A model, clean images of its kind, and noise."""

    model: EnergyModel
    clean: Tensor
    noise: Tensor


def _open(setting: Setting, kind: str) -> _Opened:
    if kind == KINDS[0]:
        run, config = trained_demo(setting)
        model = dualscore.load(run).score_model
    else:
        config = setting.config(kind.partition(",")[0])
        torch.manual_seed(0)
        model = build_score_model(config, load_statistics(config))
    assert isinstance(model, EnergyModel)
    images = 16 if setting.toy else 256
    batch = next(iter(build_datamodule(config).evenly_spaced("val", images, images)))
    shape = image_shape(config)
    clean = to_pixels(batch.image, shape[0], torch.float32).to(setting.device)
    noise = fixed_noise(batch.position.tolist(), shape, seed=0).to(setting.device)
    return _Opened(model.to(setting.device).eval(), clean, noise)


def trained_demo(setting: Setting) -> tuple[Path, ExperimentConfig]:
    """The run of `make train` where there is one, else one that is trained here for 300 steps."""
    run, data = ROOT / "runs" / "patches_dual", ROOT / "data" / "demo16"
    if not (run / "checkpoints").exists() or not data.exists():
        run, data = setting.work / "runs" / "patches_dual", setting.work / "demo16"
        if not data.exists():
            setting.prepare("demo", "--size", "16", "--out", str(data))
        setting.dualscore(
            "train", "patches_dual", f"data.path={data}", f"trainer.max_steps={2 if setting.toy else 300}",
            "trainer.accelerator=auto", "optim.warmup_steps=1", "evaluate.estimators=[paper]",
            "evaluate.images=64", "evaluate.yardsticks=[stationary]",
        )  # fmt: skip
    return run, load_experiment("patches_dual", [f"data.path={data}"], ROOT / "experiments")


def _compare(opened: Callable[[str], _Opened], kind: str, name: str, decibels: float) -> Row:
    model, clean, noise = opened(kind)
    t = torch.full((len(clean),), variance_at_psnr(decibels), device=clean.device)
    found = {}
    for way in ("fp32", name):
        with precision(way, clean.device), torch.no_grad():
            losses = dual_score_matching(model, clean, noise, t)
            energy = model(corrupt(clean, noise, t), t)
        assert losses.time is not None
        found[way] = float(losses.space.mean()), float(losses.time.mean()), energy.double()
    (space, time, exact), (rough_space, rough_time, rough) = found["fp32"], found[name]
    bits = (rough - exact) / (clean[0].numel() * math.log(2.0))
    return {
        "space loss, fp32": space,
        "its relative difference": rough_space / space - 1.0,
        "time loss, fp32": time,
        "that one's": rough_time / time - 1.0,
        "bits/dim, mean difference": float(bits.mean()),
        "bits/dim, largest": float(bits.abs().max()),
    }
