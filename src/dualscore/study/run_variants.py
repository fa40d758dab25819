"""Runs a study's variants one after another, each as the command that anybody could type."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from dualscore.assemble import build
from dualscore.errors import (
    ConfigError,
    DivergenceError,
    NormalizationError,
    StoppedError,
    TrainingError,
)
from dualscore.evaluation import is_complete
from dualscore.files.aside import write_aside
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run, completed, differences
from dualscore.runs.signals import ASKED
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.study.findings import read_result, write_results
from dualscore.study.variants import STUDIES, Study, Variant
from dualscore.terminal import final, quiet
from dualscore.training.trainer import accelerator

# As many steps as hold SOAP's rare ones, every tenth, in their share.
ROUNDS, WARM_UP, STEPS = 3, 3, 20


class _Stopwatch(Callback):
    """Times the steps after the first few."""

    seconds = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == WARM_UP:
            self._since = time.perf_counter()
        elif trainer.global_step == WARM_UP + STEPS:
            self.seconds = (time.perf_counter() - self._since) / STEPS


def run_study(study: Study, console: Console, folder: Path = STUDIES) -> None:
    """Run a study's unfinished runs, and write its table and plot after each."""
    out = folder / study.name
    out.mkdir(parents=True, exist_ok=True)
    clock = _clock(study, out, console)
    todo = list(_runs(study, clock))
    for variant, seed, steps in todo:  # all of them before the first runs
        _check_same(run_folder(out, variant, seed), variant, _settings(study, seed, steps))
    for number, (variant, seed, steps) in enumerate(todo, 1):
        run, failure = run_folder(out, variant, seed), failure_file(out, variant, seed)
        report = run.folder / "evaluation.json"
        if not failure.exists() and not (run.best.exists() and is_complete(report, run.best)
                                         and _at(run) == steps):  # fmt: skip
            console.print(
                f"{number} of {len(todo)}: {variant.name}, seed {seed}: {steps:,} steps, "
                f"about {steps * clock[variant.name] / 60:.1f} minutes and the validations",
            )
            _train(variant, run, failure, _settings(study, seed, steps))
            _report(study, clock, out)
    files = _report(study, clock, out)
    final(console, files[0].read_text(encoding="utf-8"), soft_wrap=True)
    final(console, "written to " + ", ".join(map(str, files)), soft_wrap=True)


def _settings(study: Study, seed: int, steps: int) -> list[str]:
    """What a run adds to its variant's settings."""
    every = steps // study.measurements
    return [f"seed={seed}", f"trainer.max_steps={steps}", f"trainer.validate_every={every}"]


def _check_same(run: Run, variant: Variant, settings: list[str]) -> None:
    """Refuse an existing run with other settings: its figures cannot be compared."""
    try:
        config = load_experiment(variant.experiment, [*variant.overrides, *settings])
    except ConfigError as error:
        raise ConfigError(f"{variant.name}: {error}") from error
    if not run.config_file.exists():
        return
    for key, (before, after) in differences(completed(run.read_config()), to_plain(config)).items():
        raise ConfigError(
            f"{run.folder}: was run with {key}={before}, the study now says {after}; "
            "remove that folder to run it anew"
        )


def run_folder(out: Path, variant: Variant, seed: int) -> Run:
    """Where a variant's run with a seed lives."""
    return Run(out / "runs" / f"{variant.slug}-seed{seed}")


def failure_file(out: Path, variant: Variant, seed: int) -> Path:
    """The file with the reason, in one line, that a diverged run leaves. Remove it to try again."""
    folder = run_folder(out, variant, seed).folder
    return folder.with_name(f"{folder.name}.diverged")


def _report(study: Study, clock: dict[str, float], out: Path) -> list[Path]:
    """Write table, numbers and plot of the finished runs; returns the files."""
    results = [
        read_result(run_folder(out, v, seed), v.name, seed, clock[v.name], failure_file(out, v, seed))
        for v, seed, _ in _runs(study, clock)
    ]
    return write_results(study, [r for r in results if r is not None], out)


def _at(run: Run) -> int:
    return int(read_checkpoint(run.last)["global_step"]) if run.last.exists() else 0


def _runs(study: Study, clock: dict[str, float]) -> Iterator[tuple[Variant, int, int]]:
    """Variant, seed and steps of every run; all variants of a seed before the next seed."""
    for seed in study.seeds:
        for variant in study.variants:
            yield variant, seed, steps_of(study, clock[variant.name])


def steps_of(study: Study, seconds_per_step: float) -> int:
    """A run's steps: as many as the time allows, a multiple of the study's measurements."""
    if study.steps is not None:
        return study.steps
    assert study.seconds is not None
    each = int(study.seconds / seconds_per_step / study.measurements)
    return max(1, each) * study.measurements


def _clock(study: Study, out: Path, console: Console) -> dict[str, float]:
    """Seconds a step of each variant, measured once for all runs of the study."""
    file = out / "clock.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    missing = [v for v in study.variants if v.name not in known]
    if missing:
        # All of them again, side by side: times from different hours cannot be compared.
        if study.seconds is not None and known:
            raise TrainingError(
                f"{file}: {missing[0].name} was added after the others were timed, and equal seconds need "
                f"one measurement; remove {out} and start again"
            )
        console.print(f"timing {len(study.variants)} variants, in turns")
        known = seconds_per_step({v.name: load_experiment(v.experiment, v.overrides) for v in study.variants})
        write_aside(file, (json.dumps(known, indent=1) + "\n").encode())
    return known


def _train(variant: Variant, run: Run, failure: Path, settings: list[str]) -> None:
    """Train and evaluate one run in a process of its own; a divergence is a result, and so is no log Z."""
    command = [
        sys.executable, "-m", "dualscore", "train", variant.experiment, *variant.overrides, *settings,
        "--name", run.folder.name, "--runs", str(run.folder.parent),
    ]  # fmt: skip
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "log.txt"
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ)
        before = {
            number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in ASKED
        }
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if status == StoppedError.status:
        raise StoppedError(f"{log}: the run was stopped and saved; the same command goes on")
    if status == 0:
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if status in (DivergenceError.status, NormalizationError.status) and errors:
        write_aside(failure, (errors[-1].removeprefix("error: ") + "\n").encode())
        return
    raise TrainingError(
        f"{log}: the run ended with status {status}: {(errors or lines or ['nothing said'])[-1]}"
    )


def seconds_per_step(configs: Mapping[str, ExperimentConfig]) -> dict[str, float]:
    """Seconds a training step of each, loader included: the median over rounds in which all take turns."""
    quiet()
    for name, config in configs.items():
        if config.trainer.devices * config.trainer.nodes > 1:
            raise ConfigError(f"variants.{name}: only one device can be timed; give steps instead of seconds")
    # Weights that hardly move, so that a variant which diverges can be timed too.
    still = {
        name: replace(config, optim=replace(config.optim, lr=1e-9, final_lr=0.0))
        for name, config in configs.items()
    }
    built = {name: build(config) for name, config in still.items()}
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(ROUNDS):
        for name, (module, datamodule) in built.items():
            stopwatch = _Stopwatch()
            with redirect_stderr(StringIO()):  # Lightning's remarks about what is left out on purpose
                lightning.Trainer(
                    max_steps=WARM_UP + STEPS,
                    accelerator=accelerator(configs[name]),
                    devices=1,
                    precision=configs[name].trainer.precision,  # type: ignore[arg-type]
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
