"""Runs a study's variants one after another, each as the command that anybody could type."""

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import lightning
import torch
from rich.console import Console

from dualscore.assemble import build
from dualscore.devices import allow_tf32
from dualscore.errors import ConfigError, DivergenceError, NormalizationError, StoppedError, TrainingError
from dualscore.evaluation import is_complete
from dualscore.files.aside import write_aside
from dualscore.files.typed_json import read_json
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run, completed, differences
from dualscore.runs.watchdog import ASKED, INTERRUPTED
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.study.findings import read_result, write_results
from dualscore.study.variants import STUDIES, Study, Variant
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback
from dualscore.training.trainer import accelerator, launched_by, prepare_device

# As many steps as hold SOAP's rare ones, every tenth, in their share.
ROUNDS, WARM_UP, STEPS = 3, 3, 20


def run_folder(out: Path, variant: Variant, seed: int) -> Run:
    """Where a variant's run with a seed lives."""
    return Run(out / "runs" / f"{variant.slug}-seed{seed}")


def steps_of(study: Study, seconds_per_step: float) -> int:
    """A run's steps: as many as the time allows, a multiple of the study's measurements."""
    if study.seconds is None:
        assert study.steps is not None
        return study.steps
    each = int(study.seconds / seconds_per_step / study.measurements)
    return max(1, each) * study.measurements


@dataclass(frozen=True)
class _VariantRun:
    """One run of a study."""

    variant: Variant
    seed: int
    run: Run
    seconds_per_step: float
    steps: int
    settings: list[str]
    """What it adds to its variant's."""

    @property
    def failure(self) -> Path:
        """The file with the reason, in one line, that a diverged run leaves. Remove it to try again."""
        return self.run.folder.with_name(f"{self.run.folder.name}.diverged")

    def is_done(self) -> bool:
        """Whether it diverged, or is trained to its last step and measured."""
        if self.failure.exists():
            return True
        run = self.run
        measured = run.best.exists() and is_complete(run.folder / "evaluation.json", run.best)
        return measured and run.last.exists() and read_checkpoint(run.last)["global_step"] == self.steps

    def check_same(self) -> None:
        """Refuse an existing run with other settings: its figures cannot be compared."""
        try:
            config = load_experiment(self.variant.experiment, [*self.variant.overrides, *self.settings])
        except ConfigError as error:
            raise ConfigError(f"variants.{self.variant.name}: {error}") from error
        if not self.run.config_file.exists():
            return
        for key, (before, after) in differences(completed(self.run.read_config()), to_plain(config)).items():
            raise ConfigError(
                f"{self.run.folder}: was run with {key}={before}, the study now says {after}; "
                "remove that folder to run it anew"
            )

    def train(self) -> None:
        """Train and evaluate in a process of its own; a divergence is a result, and so is no log Z."""
        folder = self.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        command = [sys.executable, "-m", "dualscore", "train", self.variant.experiment]
        command += [*self.variant.overrides, *self.settings]
        command += ["--name", folder.name, "--runs", str(folder.parent)]
        status = _run_and_log(command, log)
        if status == StoppedError.status:
            raise StoppedError(f"{log}: the run was stopped; {self.run.goes_on()}")
        if status == INTERRUPTED:
            raise KeyboardInterrupt(self.run.goes_on())
        if status == 0:
            return
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        if status not in (DivergenceError.status, NormalizationError.status) or not errors:
            last = (errors or lines or ["nothing said"])[-1]
            raise TrainingError(f"{log}: the run ended with status {status}: {last}")
        write_aside(self.failure, (errors[-1].removeprefix("error: ") + "\n").encode())


def run_study(study: Study, console: Console, folder: Path = STUDIES) -> list[Path]:
    """Run a study's unfinished runs, and write its table and plot after each; the files, the table first."""
    out = folder / study.name
    out.mkdir(parents=True, exist_ok=True)
    clock = _clock(study, out, console)
    runs = [_planned(study, variant, seed, out, clock) for seed in study.seeds for variant in study.variants]
    for each in runs:  # all of them before the first runs
        each.check_same()
    for number, each in enumerate(runs, 1):
        if not each.is_done():
            minutes = each.steps * each.seconds_per_step / 60
            console.print(
                f"{number} of {len(runs)}: {each.variant.name}, seed {each.seed}: {each.steps:,} steps, "
                f"about {minutes:.1f} minutes and the validations",
            )
            each.train()
            _report(study, runs, out)
    return _report(study, runs, out)


def _planned(study: Study, variant: Variant, seed: int, out: Path, clock: Mapping[str, float]) -> _VariantRun:
    seconds = clock[variant.name]
    steps = steps_of(study, seconds)
    every = steps // study.measurements
    settings = [f"seed={seed}", f"trainer.max_steps={steps}", f"trainer.validate_every={every}"]
    return _VariantRun(variant, seed, run_folder(out, variant, seed), seconds, steps, settings)


def _report(study: Study, runs: list[_VariantRun], out: Path) -> list[Path]:
    found = [read_result(r.run, r.variant.name, r.seed, r.seconds_per_step, r.failure) for r in runs]
    return write_results(study, [result for result in found if result is not None], out)


def _run_and_log(command: list[str], log: Path) -> int:
    """Run a command whose output is appended to a file, and which gets this process's signals; its status."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        before = {each: signal.signal(each, lambda got, _: process.send_signal(got)) for each in ASKED}
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _clock(study: Study, out: Path, console: Console) -> dict[str, float]:
    """Seconds a step of each variant, measured once for all runs of the study."""
    file = out / "clock.json"
    known: dict[str, float] = read_json(file)
    missing = [v.name for v in study.variants if v.name not in known]
    if not missing:
        return known
    # All of them again, side by side: times from different hours cannot be compared.
    if study.seconds is not None and known:
        raise TrainingError(
            f"{file}: {missing[0]} was added after the others were timed, and equal seconds need "
            f"one measurement; remove {out} and start again"
        )
    console.print(f"timing {len(study.variants)} variants, in turns")
    configs = {v.name: load_experiment(v.experiment, v.overrides) for v in study.variants}
    known = _seconds_per_step(configs, console.print)
    write_aside(file, (json.dumps(known, indent=1) + "\n").encode())
    return known


def _seconds_per_step(
    configs: Mapping[str, ExperimentConfig], note: Callable[[str], None]
) -> dict[str, float]:
    """Seconds a training step of each, loader included: the median over rounds in which all take turns.

    They are the steps of training: as much accumulated, compiled and rounded.
    """
    for name, config in configs.items():
        if config.trainer.devices * config.trainer.nodes > 1:
            raise ConfigError(f"variants.{name}: only one device can be timed; give steps instead of seconds")
    # Weights that hardly move, so that a variant which diverges can be timed too.
    still = {n: replace(c, optim=replace(c.optim, lr=1e-9, final_lr=0.0)) for n, c in configs.items()}
    built = {name: build(config) for name, config in still.items()}
    for name, (module, _) in built.items():
        prepare_device(configs[name], module, note)
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(ROUNDS):
        for name, (module, datamodule) in built.items():
            stopwatch = _Stopwatch()
            torch.compiler.reset()  # it keeps few variants of one function, and is warm before the clock runs
            allow_tf32(configs[name].trainer.tf32)
            with redirect_stderr(StringIO()):  # Lightning's remarks about what is left out on purpose
                lightning.Trainer(
                    max_steps=WARM_UP + STEPS,
                    accelerator=accelerator(configs[name]),
                    devices=1,
                    plugins=launched_by(),
                    precision=configs[name].trainer.precision,  # type: ignore[arg-type]
                    accumulate_grad_batches=configs[name].trainer.accumulate,
                    limit_val_batches=0,
                    logger=False,
                    callbacks=[stopwatch],
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    use_distributed_sampler=False,
                ).fit(module, datamodule)
            times[name].append(stopwatch.seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


class _Stopwatch(TrainingCallback):
    """Times the steps after the first few."""

    seconds = 0.0

    def after_step(self, trainer: lightning.Trainer, module: DualScoreModule) -> None:  # noqa: ARG002 - a hook
        if trainer.global_step == WARM_UP:
            self._since = time.perf_counter()
        elif trainer.global_step == WARM_UP + STEPS:
            self.seconds = (time.perf_counter() - self._since) / STEPS
