"""What a training step takes: eager and compiled, in three precisions, against the plain baseline."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.jobs import Jobs, Row, forget, read_rows
from benchmarks.gpu.setting import Setting
from benchmarks.plain import plain, plain_loss
from benchmarks.timing import flops, peak_bytes, side_by_side, synchronize
from dualscore.assemble import blank_statistics, build_score_model, image_shape
from dualscore.devices import allow_tf32
from dualscore.noise import log_uniform
from dualscore.objective import DualLoss, dual_score_matching
from dualscore.training.optimizers import compiled_loss, make_optimizer, obstacle

DUAL, BEST, DENOISER = "imagenet64_dual", "imagenet64_best", "imagenet64_denoiser"
SOON = 6
"""Variants that come before the chief one is taken apart."""
ROOM = 0.85
"""Of the device's memory that the largest batch may fill."""


@dataclass(frozen=True)
class Variant:
    """One way to make a step.

    Args:
        experiment: whose network and noise levels.
        code: `plain`, `eager` or `compiled`.
        precision: of products: `fp32`, `TF32` or `bf16`.
        channels_last: whether weights and images lie in memory pixel by pixel.
        batch: images; 0 for the experiment's number.
    """

    experiment: str = DUAL
    code: str = "eager"
    precision: str = "fp32"
    channels_last: bool = False
    batch: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        more = [", channels last"] if self.channels_last else []
        more += [f", batch {self.batch}"] if self.batch else []
        return f"{self.experiment}, {self.code}, {self.precision}" + "".join(more)


BASELINE = Variant(code="plain")
CHIEF = Variant(code="compiled", precision="bf16")
VARIANTS = [
    BASELINE,
    CHIEF,
    Variant(),
    Variant(precision="TF32"),
    Variant(precision="bf16"),
    replace(CHIEF, experiment=BEST),
    Variant(BEST, precision="bf16"),
    Variant(precision="bf16", channels_last=True),
    Variant(code="compiled", precision="TF32"),
    replace(CHIEF, experiment=DENOISER),
    Variant(DENOISER, precision="bf16"),
    Variant(code="compiled"),
    Variant(BEST, "plain"),
    Variant(BEST, "compiled"),
    Variant(DENOISER),
]
TOYS = [BASELINE, Variant(), CHIEF, Variant(BEST, precision="bf16", channels_last=True), Variant(DENOISER)]


def jobs(setting: Setting) -> Jobs:
    """The variants, the chief one taken apart among them, and the largest batch."""
    able = obstacle(setting.device.type) is None
    variants = [v for v in (TOYS if setting.toy else VARIANTS) if able or v.code != "compiled"]
    table: dict[str, Callable[[], Row]] = {v.name: partial(measure, setting, v) for v in variants[:SOON]}
    chief = CHIEF if able else replace(CHIEF, code="eager")
    table[f"{chief.name}, taken apart"] = partial(apart, setting, chief)
    table["optimisers"] = partial(optimisers, setting)
    table |= {v.name: partial(measure, setting, v) for v in variants[SOON:]}
    if setting.device.type == "cuda":
        small = ("network.width=16", "data.size=16", "data.batch_size=64")
        table[f"{CHIEF.name}, width 16, 16×16, batch 64, taken apart"] = partial(
            apart, setting, CHIEF, *small
        )
        table["largest batch"] = partial(largest, setting)
    return table


def again(setting: Setting) -> Jobs:
    """The chief variant once more, in a new process, which finds compiled code in the compiler's cache."""
    if obstacle(setting.device.type) is not None:
        return {}
    return {CHIEF.name: partial(_first_step, setting)}


def _first_step(setting: Setting) -> Row:
    step = Step(setting, CHIEF)
    start = time.perf_counter()
    step().item()
    return {"first step, s": time.perf_counter() - start}


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """fp32 as it is, TF32 or bf16 products, as the trainer's settings give them."""
    allow_tf32(name == "TF32")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        allow_tf32(False)


class Step:
    """Loss and gradient of the weights, the weights left as they are, on one seeded batch."""

    def __init__(self, setting: Setting, variant: Variant, *settings: str) -> None:
        config = setting.config(variant.experiment, *settings)
        shape, self.images = image_shape(config), variant.batch or config.data.batch_size
        torch.manual_seed(0)
        # Only the statistics' shapes matter to the time.
        self.model = build_score_model(config, blank_statistics(shape)).to(setting.device)
        generator = torch.Generator().manual_seed(1)
        self.clean = torch.rand(self.images, *shape, generator=generator).to(setting.device)
        self.noise = torch.randn(self.images, *shape, generator=generator).to(setting.device)
        middle = (torch.arange(self.images) + 0.5) / self.images
        self.t = log_uniform(middle, config.noise.t_min, config.noise.t_max).to(setting.device)
        if variant.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.clean = self.clean.to(memory_format=torch.channels_last)
            self.noise = self.noise.to(memory_format=torch.channels_last)
        self.config, self.device, self.precision = config, setting.device, variant.precision
        self.learned: nn.Module = self.model
        self.loss: Callable[..., Any] = dual_score_matching
        if variant.code == "plain":
            self.learned, self.loss = plain(self.model), plain_loss
        elif variant.code == "compiled":
            self.loss = compiled_loss(setting.device.type)

    def __call__(self) -> Tensor:
        """Make the step; the loss, without waiting for it."""
        self.learned.zero_grad(set_to_none=True)
        with precision(self.precision, self.device):
            found = self.loss(self.learned, self.clean, self.noise, self.t)
            total: Tensor = found.total.mean() if isinstance(found, DualLoss) else found
        total.backward()
        return total.detach()

    def gradient(self) -> Tensor:
        """The last step's, of all weights in one vector."""
        return torch.cat([p.grad.double().flatten() for p in self.learned.parameters() if p.grad is not None])


def reference(setting: Setting, experiment: str) -> tuple[float, Tensor]:
    """Loss and gradient of the eager step in single precision, kept for the other variants."""
    path = setting.work / "gradients" / f"{experiment}.pt"
    if not path.exists():
        step = Step(setting, Variant(experiment))
        found = {"loss": step().cpu(), "gradient": step.gradient().cpu()}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
        del step
        forget()
    kept = torch.load(path, weights_only=True)
    return float(kept["loss"]), kept["gradient"].to(setting.device)


def measure(setting: Setting, variant: Variant) -> Row:
    """Seconds, memory, the share of the products' rate, and how far loss and gradient are from eager fp32."""
    expected = None if variant.batch else reference(setting, variant.experiment)
    step = Step(setting, variant)
    start = time.perf_counter()
    loss = float(step())
    row: Row = {"first step, s": time.perf_counter() - start}
    if expected is not None:
        row["loss, relative error"] = abs(loss - expected[0]) / abs(expected[0])
        row["gradient, relative error"] = float((step.gradient() - expected[1]).norm() / expected[1].norm())
    del expected
    peak = peak_bytes(step)
    seconds = side_by_side({"step": step}, setting.repeats)["step"]
    row |= {
        "ms": 1e3 * seconds.median,
        "ms, lowest": 1e3 * seconds.low,
        "ms, highest": 1e3 * seconds.high,
        "images/s": step.images / seconds.median,
        "GB above weights": None if peak is None else peak / 1e9,
    }
    rates = read_rows(setting.out / "parts" / "machine.json")
    if rate := rates.get(f"product {variant.precision}", {}).get("TFLOP/s"):
        few = Step(setting, Variant(variant.experiment, batch=2))
        row["of the product's rate"] = flops(few) / 2 * row["images/s"] / rate / 1e12
    return row


def optimisers(setting: Setting) -> Row:
    """What Adam and SOAP take of the chief variant's step."""
    row: Row = {}
    for method in ("adam", "soap"):
        step = Step(setting, Variant(precision="bf16", batch=2), f"optim.method={method}")
        step()
        optimizer = make_optimizer(step.model, step.config.optim)
        for _ in range(2):  # SOAP's first step makes its bases only
            optimizer.step()
        turns = 3 if setting.toy else 20  # SOAP renews its bases every tenth step

        def several(move: Callable[[], object] = optimizer.step, turns: int = turns) -> None:
            for _ in range(turns):
                move()

        row[f"{method}, ms"] = 1e3 * side_by_side({"step": several}, 2)["step"].median / turns
    return row


def apart(setting: Setting, variant: Variant, *settings: str) -> Row:
    """What the device does in a step, by kind of kernel, and the step recorded as a CUDA graph and played."""
    step = Step(setting, variant, *settings)
    step()
    row = _kernels(step)
    return row | _graph(setting, step) if setting.device.type == "cuda" else row


def _kernels(step: Step) -> Row:
    seconds = side_by_side({"step": step}, 5)["step"].median
    cuda = step.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        synchronize()
    found = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3
        for event in profile.key_averages()
        if (event.device_type == torch.autograd.DeviceType.CUDA) == cuda
    }
    groups = {
        "convolutions": r"gemm|conv|cudnn|wgrad|dgrad|fprop",
        "fused by the compiler": r"^triton",
        "other": "",
    }
    row: Row = {"busy, of the step's time": sum(found.values()) / 1e3 / seconds}
    for group, pattern in groups.items():
        mine = [key for key in found if re.search(pattern, key)]
        row[f"{group}, ms"] = sum(found.pop(key) for key in mine)
    return row


def _graph(setting: Setting, step: Step) -> Row:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # type: ignore[no-untyped-call]
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    expected = float(step())
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        loss = step()
    recorded.replay()
    times = side_by_side({"launched": step, "played": recorded.replay}, setting.repeats)
    return {
        "ms": 1e3 * times["launched"].median,
        "ms, as a CUDA graph": 1e3 * times["played"].median,
        "loss, relative error": abs(float(loss) - expected) / abs(expected),
    }


def largest(setting: Setting) -> Row:
    """The largest batch, a multiple of 64, that should fit by the chief variant's memory."""
    found = read_rows(setting.out / "parts" / "steps.json")[CHIEF.name]
    images = setting.config(DUAL).data.batch_size
    total = torch.cuda.get_device_properties(setting.device).total_memory
    fits = int(ROOM * total / 1e9 / found["GB above weights"] * images) // 64 * 64
    return {"batch": fits} | measure(setting, replace(CHIEF, batch=fits))
