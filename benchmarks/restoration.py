"""Photographs restored through deepinv, by our energies and by what needs no network: a table of PSNR.

python benchmarks/restoration.py FOLDER --tune FOLDER [--model photographs_gray] [--side 128] [--most 20]

Five measurements by deepinv's physics; plug-and-play (DPIR) with our denoiser, alone and the mean of four
orientations', and with BM3D; total variation and wavelets, whose weights the photographs of --tune choose.
And how the cost of a deblurring falls by gradient steps on data term and energy. It needs deepinv, with ptwt
and bm3d.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import deepinv
import numpy as np
import torch
from deepinv.models import Denoiser
from deepinv.optim import DPIR, FISTA, GD, L2, PGD, PnP
from deepinv.physics import NoiseModel, Physics
from PIL import Image
from torch import Tensor

import dualscore
from dualscore.adapters.for_deepinv import EnergyDenoiser, EnergyPrior
from dualscore.model import ImageModel

NOISE = 0.02
DENOISED = 25 / 255
WEIGHTS = [1e-3, 3e-3, 6e-3, 0.012, 0.025, 0.05, 0.07, 0.1, 0.14]
"""Of total variation and wavelets, to choose among."""
ITERATIONS = 50
FAR, STEPS = 0.3, 40
"""Standard deviation that steps of compressed sensing begin with, and their number; chosen on --tune's."""


class Task(NamedTuple):
    """A measurement, and how plug-and-play goes about it."""

    name: str
    physics: Physics
    noise: float
    start: Callable[[Tensor], Tensor]  # where it begins, of measurements
    by: str  # "denoiser", "splitting", or "gradients" where the start is too far away for few steps


def photographs(folder: Path, side: int, most: int) -> Tensor:
    """The middles of the first photographs of a folder, in gray, (B, 1, side, side)."""
    found = []
    for path in sorted(folder.iterdir())[:most]:
        gray = np.asarray(Image.open(path).convert("L"), np.float32) / 255.0
        top, left = (gray.shape[0] - side) // 2, (gray.shape[1] - side) // 2
        found.append(torch.from_numpy(gray[top : top + side, left : left + side])[None])
    return torch.stack(found)


def tasks(side: int) -> Iterator[Task]:
    """Each with Gaussian noise, drawn by one seed."""
    size = (1, side, side)

    def noisy(sigma: float) -> NoiseModel:
        return deepinv.physics.GaussianNoise(sigma, rng=torch.Generator().manual_seed(0))

    kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=(1.6, 1.6))
    blur = deepinv.physics.BlurFFT(size, kernel, noise_model=noisy(NOISE))
    half = deepinv.physics.Downsampling(img_size=size, filter="bicubic", factor=2, noise_model=noisy(NOISE))
    mask = (torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    hidden = deepinv.physics.Inpainting(size, mask=mask, noise_model=noisy(NOISE))
    random = deepinv.physics.StructuredRandom(
        size, (1, side, side // 2), rng=torch.Generator().manual_seed(2), noise_model=noisy(NOISE)
    )
    noise = deepinv.physics.Denoising(noise_model=noisy(DENOISED))
    yield Task("denoising, 25/255", noise, DENOISED, as_it_is, "denoiser")
    yield Task("deblurring, 1.6 pixels", blur, NOISE, as_it_is, "splitting")
    yield Task("twice the size", half, NOISE, half.A_dagger, "splitting")
    yield Task("inpainting, half", hidden, NOISE, lambda y: filled(y, mask), "splitting")
    yield Task("compressed sensing, half", random, NOISE, random.A_dagger, "gradients")


def as_it_is(y: Tensor) -> Tensor:
    """Measurements that are images."""
    return y


def filled(y: Tensor, mask: Tensor) -> Tensor:
    """Hidden pixels as the mean of those seen around them."""
    around = torch.ones(1, 1, 7, 7)
    seen = torch.nn.functional.conv2d(mask.expand(y.shape), around, padding=3)
    means = torch.nn.functional.conv2d(y, around, padding=3) / seen.clamp(min=1.0)
    return torch.where(mask > 0, y, means)


def psnr(found: Tensor, clean: Tensor) -> Tensor:
    """In dB, (B,)."""
    return -10.0 * (found.clamp(0, 1) - clean).square().mean(dim=(1, 2, 3)).log10()


def plug_and_play(denoiser: Denoiser) -> Callable[[Task, Tensor], Tensor]:
    """By the denoiser itself, half-quadratic splitting (DPIR), or 40 proximal gradients."""

    def restore(task: Task, y: Tensor) -> Tensor:
        if task.by == "denoiser":
            return torch.as_tensor(denoiser(y, task.noise))
        first = task.start(y)
        if task.by == "gradients":
            falling = torch.logspace(math.log10(FAR), math.log10(task.noise), STEPS).tolist()
            by_steps = PGD(L2(), PnP(denoiser), stepsize=1.0, g_param=falling, max_iter=STEPS)
            return torch.as_tensor(by_steps(y, task.physics, init=first))
        algorithm = DPIR(sigma=task.noise, denoiser=denoiser)
        return torch.as_tensor(algorithm(y, task.physics, init=(first, first)))

    return restore


def convex(shrink: Denoiser, weight: float) -> Callable[[Task, Tensor], Tensor]:
    """The least of ½‖Ax − y‖² + weight · g(x), where `shrink` is the proximal step of g."""

    def restore(task: Task, y: Tensor) -> Tensor:
        if task.by == "denoiser":
            return torch.as_tensor(shrink(y, weight))
        norm = float(task.physics.compute_norm(torch.ones_like(task.start(y)[:1]), verbose=False))
        told = {"stepsize": 1.0 / norm, "g_param": weight / norm, "max_iter": ITERATIONS}
        return torch.as_tensor(FISTA(L2(), PnP(shrink), **told)(y, task.physics))

    return restore


def cost_curve(model: ImageModel, clean: Tensor, task: Task) -> list[float]:
    """Data term and energy, in nats, of gradient steps from a blurred photograph."""
    y = task.physics(clean)
    data, prior, sigma, costs = L2(sigma=task.noise), EnergyPrior(model), 0.05, []

    def cost(
        x: Tensor, fidelity: L2, prior: EnergyPrior, told: dict[str, Any], y: Tensor, physics: Physics
    ) -> Tensor:
        found = fidelity.fn(x, y, physics) + told["lambda"] * prior.fn(x, told["g_param"])
        costs.append(float(found.sum()))
        return torch.as_tensor(found)

    step = 1.0 / (1.0 / task.noise**2 + 1.0 / sigma**2)
    algorithm = GD(data, prior, stepsize=step, g_param=sigma, max_iter=40, cost_fn=cost)
    algorithm(y, task.physics)
    return costs


def main(arguments: list[str] | None = None) -> int:
    """Print the table in Markdown, and the curve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("--model", default="photographs_gray")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--most", type=int, default=20)
    options = parser.parse_args(arguments)
    model = dualscore.load(options.model)
    clean = photographs(options.folder, options.side, options.most)
    tuned = photographs(options.tune, options.side, 4)
    fixed = {
        "this energy": plug_and_play(EnergyDenoiser(model)),
        "its four orientations": plug_and_play(EnergyDenoiser(model, turned=True)),
        "BM3D": plug_and_play(deepinv.models.BM3D()),
    }
    weighed = {
        "total variation": deepinv.models.TVDenoiser(n_it_max=100),
        "wavelets": deepinv.models.WaveletDictDenoiser(list_wv=["db8", "db4"], level=3, max_iter=10),
    }
    names = ["as measured", *weighed, *fixed]
    print(
        f"{len(clean)} photographs of {options.side}², PSNR in dB, mean ± of differences from total variation"
    )
    print("| |", " | ".join(names), "|\n|", " --- |" * (len(names) + 1), flush=True)
    for task in tasks(options.side):
        torch.manual_seed(0)
        y, of_tuned = task.physics(clean), task.physics(tuned)
        found, spent = {"as measured": task.start(y)}, {}
        for name, shrink in weighed.items():
            best = max(WEIGHTS, key=lambda w: float(psnr(convex(shrink, w)(task, of_tuned), tuned).mean()))
            began = time.process_time()
            found[name] = convex(shrink, best)(task, y)
            spent[f"{name} ({best:g})"] = time.process_time() - began
        for name, restore in fixed.items():
            began = time.process_time()
            found[name] = restore(task, y)
            spent[name] = time.process_time() - began
        values = {name: psnr(images, clean) for name, images in found.items()}
        base = values["total variation"]
        error = {n: float((v - base).std() / len(clean) ** 0.5) for n, v in values.items()}
        row = [f"{float(v.mean()):.2f} ± {error[n]:.2f}" for n, v in values.items()]
        print("|", task.name, "|", " | ".join(row), "|", flush=True)
        print("  seconds:", {n: round(s, 1) for n, s in spent.items()}, file=sys.stderr, flush=True)
    blur = list(tasks(options.side))[1]
    costs = cost_curve(model, clean[:1], blur)
    falls = sum(b < a for a, b in pairwise(costs))
    print(
        f"deblurring's cost, nats: {costs[0]:.0f} → {costs[-1]:.0f}; {falls} of {len(costs) - 1} steps fall"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
