"""Real training from the shards: who waits for whom, what survives a kill, what a full run would take."""

import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu.jobs import Jobs, Row
from benchmarks.gpu.setting import ROOT, Setting
from benchmarks.gpu.steps import BEST, CHIEF, DUAL, Step
from benchmarks.timing import side_by_side, synchronize
from dualscore.errors import CheckpointError
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run
from dualscore.runs.run_status import Status
from dualscore.train_experiment import train
from dualscore.training.optimizers import obstacle

FEW = [
    "evaluate.estimators=[paper]", "evaluate.images=64", "evaluate.train_images=64",
    "evaluate.yardsticks=[stationary]", "trainer.validate_images=64", "optim.warmup_steps=1",
]  # fmt: skip


def fast(setting: Setting) -> list[str]:
    """The fastest that the device allows."""
    compiled = obstacle(setting.device.type) is None and not setting.toy
    return ["trainer.precision=bf16-mixed", f"trainer.compile={str(compiled).lower()}"]


def running(setting: Setting) -> Jobs:
    """200 steps through `make train`, and steps watched from inside."""
    return {
        f"make train EXP={DUAL}": partial(make_train, setting, DUAL),
        f"{DUAL}, watched": partial(watched, setting, DUAL),
        f"{BEST}, watched": partial(watched, setting, BEST),
    }


def make_train(setting: Setting, experiment: str) -> Row:
    """What a run says of itself after 200 steps with two validations and their checkpoints."""
    steps = 6 if setting.toy else 200
    settings = setting.settings(
        *fast(setting), *FEW, f"trainer.max_steps={steps}", f"trainer.validate_every={steps // 2}",
        f"trainer.log_every={max(1, steps // 10)}",
    )  # fmt: skip
    name, start = f"{experiment}-{time.time_ns()}", time.perf_counter()
    setting.run(
        [
            "make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.installed", f"PY={sys.executable}", "train",
            f"EXP={experiment}", f"NAME={name}", f"SET={' '.join(settings)}",
        ]
    )  # fmt: skip
    status = Status.read(setting.work / "runs" / name)
    assert status is not None
    return {
        "steps": status.step,
        "images/s": status.images_per_second,
        "stall": status.stall,
        "memory, GB": None if status.memory is None else status.memory / 1e9,
        "state": str(status.state),
        "from start to end, s": time.perf_counter() - start,
    }


class Watch(Callback):
    """Times steps and validations, and counts what makes the host wait for the device.

    PyTorch warns of each wait where it is told to (torch.cuda.set_sync_debug_mode), with its place in Python.

    Args:
        first: steps made when it begins to look.
        last: steps made when it stops.
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.seconds = 0.0
        self.validations: list[tuple[float, float]] = []
        """Of each: seconds for its images, seconds for all of it."""
        self.waits: Counter[str] = Counter()
        self._start = self._validation = self._images = 0.0
        self._catch = warnings.catch_warnings(record=True)
        self._caught: list[warnings.WarningMessage] | None = None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Begin to look."""
        if trainer.global_step != self.first:
            return
        synchronize()
        if torch.cuda.is_available():
            self._caught = self._catch.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Stop; `global_step` has counted the step already."""
        if trainer.global_step != self.last:
            return
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
            self._catch.__exit__(None, None, None)
            for warning in self._caught or []:
                if str(warning.message).startswith("called a synchronizing"):
                    self.waits[f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"] += 1
        synchronize()
        self.seconds = (time.perf_counter() - self._start) / (self.last - self.first)

    def on_validation_start(self, *_: object) -> None:
        """A validation begins."""
        synchronize()
        self._validation = time.perf_counter()

    def on_validation_batch_end(self, *_: object) -> None:
        """The images so far are measured."""
        synchronize()
        self._images = time.perf_counter()

    def on_validation_end(self, *_: object) -> None:
        """Figures and pictures are written."""
        self.validations.append((self._images - self._validation, time.perf_counter() - self._validation))


def watched(setting: Setting, experiment: str) -> Row:
    """Steps inside Lightning, without a validation or a log entry among them, and the second validation."""
    half, images = (6, 16) if setting.toy else (40, 512)
    config = setting.config(
        experiment, *fast(setting), *FEW, f"trainer.validate_images={images}",
        f"trainer.max_steps={2 * half}", f"trainer.validate_every={half}", f"trainer.log_every={half}",
    )  # fmt: skip
    watch = Watch(half + half // 3, 2 * half - 2)
    train(config, Run(setting.work / "runs" / f"{experiment}-watched-{time.time_ns()}"), [watch])
    waits = sum(watch.waits.values()) / (watch.last - watch.first)
    (_, first), (measuring, whole) = watch.validations
    return {
        "ms a step": 1e3 * watch.seconds,
        "waits a step": waits if torch.cuda.is_available() else None,
        "where": ", ".join(f"{place} ({count})" for place, count in watch.waits.most_common(6)) or "nowhere",
        "validated images/s": images / measuring,
        "a validation beside its images, s": whole - measuring,
        "the first validation, s": first,
    }


def resuming(setting: Setting) -> Jobs:
    """A run killed and taken up again, against one left alone; and what exact repetition costs."""
    return {
        "killed and resumed, eager": partial(killed, setting, "false"),
        "deterministic": partial(deterministic, setting),
        **({} if setting.toy else {"killed and resumed, compiled": partial(killed, setting, "true")}),
    }


def killed(setting: Setting, compiled: str) -> Row:
    """Largest differences of weights: of the same run twice, and of one that was killed on the way."""
    steps, every = 9, 3
    settings = setting.settings(
        "trainer.precision=bf16-mixed", f"trainer.compile={compiled}", *FEW, f"trainer.max_steps={steps}",
        f"trainer.validate_every={every}", "trainer.log_every=1",
    )  # fmt: skip

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "dualscore", "train", DUAL, *settings, "--name", name]

    def weights(name: str) -> dict[str, torch.Tensor]:
        content = read_checkpoint(Run(setting.work / "runs" / name).last)
        return {key: value for key, value in content["state_dict"].items() if key.startswith("model.")}

    names = [f"{kind}-{compiled}-{time.time_ns()}" for kind in ("whole", "twice", "killed")]
    for name in names[:2]:
        setting.run(command(name))
    process = setting.start(command(names[2]))
    reached = _kill_after_a_checkpoint(process, Run(setting.work / "runs" / names[2]))
    setting.run(command(names[2]))
    whole, twice, resumed = map(weights, names)
    return {
        "killed after step": reached,
        "the same run twice": _difference(whole, twice),
        "killed and resumed": _difference(whole, resumed),
    }


def _kill_after_a_checkpoint(process: Any, run: Run) -> int:  # noqa: ANN401 - a Popen
    """Kill a run as soon as a checkpoint is there; the step that it was of."""
    while process.poll() is None:
        if run.last.exists():
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            break
        time.sleep(0.01)
    try:
        return int(read_checkpoint(run.last)["global_step"])
    except CheckpointError as error:
        raise RuntimeError(f"no checkpoint to go on from: {error}") from error


def _difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> str:
    if all(torch.equal(first[name], second[name]) for name in first):
        return "bitwise equal"
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    return f"at most {largest:.1e} apart"


def deterministic(setting: Setting) -> Row:
    """An eager bf16 step's gradient twice, as it is and with deterministic algorithms; the time of both."""
    step = Step(setting, replace(CHIEF, code="eager"))
    row: Row = {}

    def forced() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            step()
        finally:
            torch.use_deterministic_algorithms(False)

    ways: dict[str, Callable[[], object]] = {"as it is": step, "deterministic": forced}
    for name, way in ways.items():
        way()
        first = step.gradient()
        way()
        row[f"gradient twice, {name}"] = (
            "bitwise equal" if torch.equal(first, step.gradient()) else "not equal"
        )
    times = side_by_side(ways, setting.repeats)
    return row | {
        "deterministic, of the step's time": times["deterministic"].median / times["as it is"].median
    }


def several(setting: Setting) -> Jobs:
    """Training on all devices of the machine, against one; on a CPU on two processes."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 2
    return (
        {f"{devices} devices": partial(_on, setting, devices) for devices in (1, count)} if count > 1 else {}
    )


def _on(setting: Setting, devices: int) -> Row:
    steps, name = (4 if setting.toy else 60), f"devices-{devices}-{time.time_ns()}"
    batch = devices * setting.config(DUAL).data.batch_size
    setting.dualscore(
        "train", DUAL, *setting.settings(*fast(setting), *FEW), f"trainer.devices={devices}",
        f"data.batch_size={batch}", f"trainer.max_steps={steps}", f"trainer.validate_every={steps}",
        "trainer.log_every=2", "--name", name,
    )  # fmt: skip
    status = Status.read(setting.work / "runs" / name)
    assert status is not None
    return {"batch": batch, "images/s": status.images_per_second, "stall": status.stall}
